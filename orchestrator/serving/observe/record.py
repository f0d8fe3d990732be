"""Writes down how each request and each batch ended. The hot path only appends; `fold` counts the pile once in a while."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from orchestrator.serving.observe.arms import Arm
from orchestrator.serving.observe.events import Ended, EventRing
from orchestrator.serving.observe.metrics import BatchRow, Metrics, Place
from orchestrator.serving.table import Generation

if TYPE_CHECKING:
    from orchestrator.serving.dispatch.lanes import Batch, Caller, Lane, Replica
    from orchestrator.serving.link.wire import Statuses
    from orchestrator.serving.observe.tracing import Tracer

MODEL: Final = "model"
_PILE: Final = 256
_FOLD_S: Final = 1.0


class Observer(Protocol):
    """Looks at requests as they end."""

    def ended(self, row: Ended, caller: Caller | None) -> None:
        """A request has ended."""
        ...


class Recorder:
    """The one place where events are made."""

    def __init__(self) -> None:
        self._events = EventRing()
        self._metrics = Metrics()
        self._ended: list[Ended] = []
        self._batches: list[BatchRow] = []
        self._folded_at = 0.0
        self.observers: list[Observer] = []
        self.tracer: Tracer | None = None

    @property
    def events(self) -> EventRing:
        """Every request that has ended until now."""
        self.fold()
        return self._events

    @property
    def metrics(self) -> Metrics:
        """Counts of all that has ended until now."""
        self.fold()
        return self._metrics

    def record(  # noqa: PLR0913 - once per request: an object for its arguments would cost more than all the rest
        self,
        endpoint: str,
        generation: Generation | None,
        status: int,
        error: str,
        *,
        replica: str = "",
        batch_size: int = 0,
        queue_s: float,
        compute_us: int = 0,
        total_s: float,
        synthetic: bool,
        stage: str = MODEL,
        caller: Caller | None = None,
        arm: Arm | None = None,
    ) -> None:
        """Record one request; `generation` is None where it ended before one was chosen, `arm` where it is not compared."""
        number = generation.generation if generation else 0
        row = (
            time.time(),
            endpoint,
            number,
            stage,
            status,
            error,
            generation,
            replica,
            batch_size,
            queue_s,
            compute_us,
            total_s,
            synthetic,
            arm,
        )
        self._ended.append(row)
        for observer in self.observers if stage == MODEL else ():
            observer.ended(row, caller)

    def batch(self, replica: Replica, batch: Batch, statuses: Statuses, bytes_out: int) -> None:
        """Record one batch that a replica has answered."""
        first, rows, compute_us = batch.requests[0], batch.rows[0], statuses.compute_us
        bytes_in = first.fitted.size_bytes
        if len(batch.rows) > 1:
            rows, bytes_in = sum(batch.rows), sum([request.fitted.size_bytes for request in batch.requests])
        place = place_of(first.lane)
        row = (place, replica.name, replica.device, rows, compute_us, statuses.copy_us, bytes_in, bytes_out)
        self._batches.append(row)
        if self.tracer is not None:
            self.tracer.batched(batch, replica, compute_us)

    def tick(self, now: float) -> None:
        """Fold where enough has come together, or a second has gone; call this every 50 ms or so."""
        if len(self._ended) > _PILE or now - self._folded_at > _FOLD_S:
            self._folded_at = now
            self.fold()

    def fold(self) -> None:
        """Count what has been recorded since the last time; probes make events, but are not counted."""
        ended, batches = self._ended, self._batches
        if ended:
            self._ended = []
            self._events.extend([row for row in ended if row[3] == MODEL])  # one event a request, however many stages
            groups: dict[tuple[object, ...], list[Ended]] = {}
            for row in ended:
                key = row[1:6]
                group = groups.get(key)
                if group is None:
                    groups[key] = [row]
                else:
                    group.append(row)
            for group in groups.values():
                self._count(group)
        if batches:
            self._batches = []
            self._metrics.count_batches(batches)

    def _count(self, group: list[Ended]) -> None:
        users = [row for row in group if not row[12]]
        if users:
            _, endpoint, number, stage, status, error, *_ = users[0]
            queue_s, total_s = [row[9] for row in users], [row[11] for row in users]
            self._metrics.count_requests((endpoint, number, stage), status, error, queue_s, total_s)


def place_of(lane: Lane) -> Place:
    """Return what names the lane in labels."""
    return lane.endpoint, lane.generation.generation, lane.stage
