"""Requests to replicas: one FIFO per generation, a batch is formed the moment a replica is free. No sockets, no clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from orchestrator.serving.dispatch.ending import Ending
from orchestrator.serving.dispatch.fairness import Slot, computed, due, wait_s
from orchestrator.serving.dispatch.framing import encode_batch, pieces_of
from orchestrator.serving.dispatch.lanes import Batch, Lane, Replica, Request, attach
from orchestrator.serving.dispatch.late import came_back, held, leaving, take_late
from orchestrator.serving.dispatch.queueing import enqueue, take_batch
from orchestrator.serving.dispatch.refusals import (
    cannot_load,
    expired,
    hangs,
    no_replica,
    no_use,
    overdue,
    queue_full,
    refuse_stuck,
    replicas_lost,
    too_late,
)
from orchestrator.serving.dispatch.waking import Waking
from orchestrator.serving.link.frames import Frame, Kind, LinkError, decode_tensors, encode
from orchestrator.serving.link.wire import read_statuses
from orchestrator.serving.observe.record import Recorder

_MAX_ATTEMPTS: Final = 2
_ROUNDING_S: Final = 1e-6
"""Of sums of times; a delay that is over by less may not have been seen to be over."""


class Dispatcher(Ending):
    """Owns every request between its arrival and its answer.

    All methods run on the event loop; `now` is `time.monotonic()`.

    Args:
        soon: Calls back once the requests that have arrived together are all queued: what comes in one turn of the event
            loop leaves in one batch.
        later: Calls back after so many seconds.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        queue_limit: int,
        replica_grace_s: float,
        soon: Callable[[Callable[[], None]], object],
        later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(recorder)
        self._queue_limit = queue_limit
        self._replica_grace_s = replica_grace_s
        self.soon = soon
        self._later = later
        self.clock = clock
        self._slots: dict[str, Slot] = {}
        self._fresh: dict[Lane, float] = {}
        self._number = 0
        self.lanes: list[Lane] = []
        self.waking: Waking | None = None

    # --- requests ---

    def submit(self, request: Request) -> None:
        """Queue a request; it is sent in this turn of the event loop where a replica is free.

        Raises:
            RequestError: 429 when the queue is full, 503 when no replica can come in time.
        """
        lane = request.lane
        if len(lane.queue) >= self._queue_limit:
            self._pump_lane(lane, request.arrived)
        if len(lane.queue) >= self._queue_limit:
            raise queue_full(lane, request.arrived)
        if not lane.replicas:
            self._check_lonely(lane, request.arrived)
        enqueue(lane.queue, request)
        if lane.delay_s:
            self._wait(lane, request.arrived)
        if not self._fresh:
            self.soon(self._pump_fresh)
        self._fresh[lane] = request.arrived

    def check_room(self, lane: Lane, now: float) -> None:
        """Look whether a request that reaches this lane later will be taken; what is on its way to it counts.

        Raises:
            RequestError: As `submit`.
        """
        if len(lane.queue) + lane.expected >= self._queue_limit:
            raise queue_full(lane, now)
        if not lane.replicas:
            self._check_lonely(lane, now)

    def _check_lonely(self, lane: Lane, now: float) -> None:
        if lane.lazy and self.waking is not None:
            self.waking.attend(lane, now)
            refuse_stuck(lane, now)
        elif now - lane.lonely_since > self._replica_grace_s:
            raise no_replica(lane)

    def agent_reported(self, now: float) -> None:
        """Take in what agents say of their models: who waits for one that cannot be loaded is answered."""
        if self.waking is not None:
            for lane in self.waking.reported(now):
                while lane.queue:
                    self._fail(lane.queue.popleft(), cannot_load(lane, now), now)

    def _pump_fresh(self) -> None:
        fresh, self._fresh = self._fresh, {}
        for lane, now in fresh.items():
            self._pump_lane(lane, now)

    # --- batches ---

    def _pump_lane(self, lane: Lane, now: float) -> None:
        while lane.queue:
            free = [r for r in lane.replicas if r.credits > 0 and r.slot.free > 0 and not (r.draining or r.late)]
            if not free:
                return
            replica = max(free, key=lambda replica: replica.credits)
            if not due(lane, replica, now):
                return
            self._send_batch(replica, lane, now)

    def pump(self, replica: Replica, now: float) -> None:
        """Send batches while the replica's slot can take them: the endpoint that has used it least goes first, and of its
        lanes the longest waiting.
        """
        slot = replica.slot
        while slot.free > 0 and (found := slot.next(now)) is not None:
            self._send_batch(*found, now)
        self._drain_when_idle(replica)

    def _wait(self, lane: Lane, now: float) -> None:
        """Look at the lane again when its delay is over; one timer is enough."""
        if not lane.timed:
            lane.timed = True
            self._later(max(0.0, wait_s(lane, now)), lambda: self._waited(lane))

    def _waited(self, lane: Lane) -> None:
        lane.timed = False
        now = self.clock()  # once: between two looks a delay may end that neither sees
        self._pump_lane(lane, now)
        if lane.queue and wait_s(lane, now) > -_ROUNDING_S:
            self._wait(lane, now)

    def _send_batch(self, replica: Replica, lane: Lane, now: float) -> None:
        requests, dropped = take_batch(lane.queue, replica.most_rows(lane), now)
        for request in dropped:
            self._fail(request, no_use(request), now)
        if not requests:
            return
        rows = [request.fitted.rows for request in requests]
        self._number = (self._number + 1) & 0xFFFFFFFF
        batch = Batch(self._number, requests, rows, begun=now)
        slot = replica.slot
        slot.free -= 1
        if slot.shared:
            slot.charge(batch, lane.endpoint, lane.settings.share)
        for request in requests:
            request.sent = now
            request.attempts += 1
        replica.batches[batch.number] = batch
        replica.credits -= 1
        lane.in_flight += len(requests)
        replica.send(encode_batch(batch, replica.signature.max_batch > 1))
        if lane.delay_s and lane.queue:
            self._wait(lane, now)

    # --- what replicas say ---

    def reply(self, replica: Replica, frame: Frame, now: float) -> None:
        """Answer the requests of a batch.

        Raises:
            LinkError: The reply makes no sense; its connection must end.
        """
        batch = replica.batches.get(frame.id)
        if batch is None:
            raise LinkError(f"reply to unknown batch {frame.id}")
        statuses = read_statuses(frame, len(batch.requests))
        outputs = decode_tensors(frame, "outputs")
        pieces = pieces_of(replica, batch, statuses, outputs)
        del replica.batches[frame.id]
        replica.credits += statuses.credit
        came_back(replica, batch)
        replica.slot.settle(batch, replica.endpoint, statuses.compute_us)
        computed(replica, statuses.compute_us)
        rows, lane = sum(batch.rows), batch.requests[0].lane
        if lane.generation.builds:
            lane.wear(replica)
        lane.statistics.executed(rows, statuses.compute_us)
        self.recorder.batch(replica, batch, statuses, len(frame.body))
        if statuses.flags is not None:
            for request, flags in zip(batch.requests, statuses.flags, strict=True):
                request.flags = flags
        for request, error in zip(batch.requests, statuses.errors, strict=True):
            request.lane.in_flight -= 1
            if error is not None:
                self._fail(request, error, now, replica.name)
            else:
                self._answer(request, next(pieces), replica.name, now, rows, statuses.compute_us)
        self.pump(replica, now)

    def leaves(self, replica: Replica) -> None:
        """The replica wants nothing more: its drain frame follows what was sent to it already."""
        if not replica.draining:
            replica.draining = True
            replica.send([encode(Kind.DRAIN, {})])

    def credit(self, replica: Replica, more: int, now: float) -> None:
        """The replica can take this many batches more."""
        replica.credits += more
        self.pump(replica, now)

    def lost(self, replica: Replica, now: float) -> None:
        """The replica's connection has ended: its unanswered requests go elsewhere, once."""
        replica.draining = True
        for lane in replica.lanes:
            lane.replicas.remove(replica)
            if not lane.replicas:
                lane.lonely_since = now
        requests = [request for batch in replica.batches.values() for request in batch.requests]
        replica.slot.leave(replica, held(replica))
        replica.batches.clear()
        for request in reversed(requests):
            request.lane.in_flight -= 1
            if request.attempts < _MAX_ATTEMPTS:
                request.lane.queue.appendleft(request)
            else:
                self._fail(request, replicas_lost(request, now), now)
        for lane in list(replica.lanes):
            self._pump_lane(lane, now)
        if replica.slot.replicas:
            self.pump(replica.slot.replicas[0], now)
        else:
            self._slots.pop(replica.slot.name, None)

    def register(self, replica: Replica, now: float) -> None:
        """Attach a replica to its lanes.

        Raises:
            LinkError: Not in the table, another device than the table says, or another signature than its siblings'.
        """
        lanes = [lane for lane in self.lanes if lane.takes(replica)]
        if not any(not lane.retired for lane in lanes):
            raise LinkError(f"endpoint {replica.endpoint} with bundle {replica.bundle} is not in the table")
        for lane in lanes:
            if not lane.fits(replica.device, replica.build):
                raise LinkError(
                    f"the table wants device {lane.generation.device!r}, the replica runs on {replica.device!r}"
                )
            known = lane.signature if lane.replicas or not lane.lazy else None
            if known is not None and not known.is_like(replica.signature, mixed=bool(lane.generation.builds)):
                raise LinkError("the replica's inputs and outputs differ from those of its siblings")
        if replica.slot.name:
            replica.slot = self._slots.setdefault(replica.slot.name, replica.slot)
        replica.slot.join(replica, replica.depth)
        for lane in lanes:
            attach(replica, lane)
        self.pump(replica, now)

    def _drain_when_idle(self, replica: Replica) -> None:
        """A replica whose generations have left the table ends once nothing waits for it."""
        if replica.draining or replica.batches:
            return
        if all(lane.retired and not lane.busy for lane in replica.lanes):
            self.leaves(replica)

    # --- time ---

    def sweep(self, now: float) -> None:
        """Answer 504 and 503 where it is due, and let go of retired lanes; call this every 50 ms or so."""
        for lane in list(self.lanes):
            for request, error in overdue(lane, now, self._replica_grace_s):
                self._fail(request, error, now)
            if lane.queue and lane.lazy and self.waking is not None:
                self.waking.attend(lane, now)
            lane.pace.sample(now, lane.statistics.succeeded, len(lane.queue))
            if lane.retired and not lane.busy:
                self._release(lane)
        replicas = self.replicas()
        for request, replica in expired(replicas, now):
            self._fail(request, too_late(), now, replica)
        late = take_late(replicas, now)
        for request, replica in leaving(replicas):
            self._fail(request, hangs(request), now, replica)
        for replica in late:
            self.pump(replica, now)

    def _release(self, lane: Lane) -> None:
        for replica in lane.replicas:
            self._drain_when_idle(replica)
        if all(replica.draining for replica in lane.replicas) or not lane.replicas:
            self.lanes.remove(lane)

    def replicas(self) -> list[Replica]:
        """Return every registered replica once."""
        return list({id(replica): replica for lane in self.lanes for replica in lane.replicas}.values())
