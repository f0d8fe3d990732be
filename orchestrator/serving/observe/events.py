"""One event per finished request, in a ring; what rollouts judge."""

from __future__ import annotations

import time
from collections import deque
from itertools import islice
from typing import Final, NamedTuple

from orchestrator.core.ids import new_token
from orchestrator.serving.observe.arms import Arm
from orchestrator.serving.table import Generation

RING: Final = 1 << 16

Ended = tuple[float, str, int, str, int, str, Generation | None, str, int, float, int, float, bool, Arm | None]
"""How a request ended, as the hot path writes it down: time, endpoint, generation's number, stage, status, error, generation,
replica, batch size, queue_s, compute_us, total_s, synthetic, arm. A plain tuple is the cheapest thing that Python makes.
"""


class Event(NamedTuple):
    """How one request ended.

    Attributes:
        seq: Grows by one; begins at the microseconds of the router's start, so that it grows across restarts too.
        t: Unix time of the end, seconds.
        generation: 0 where the request ended before one was chosen.
        status: HTTP status of the answer; 499 where the client had gone.
        error: Machine word, empty for a success.
        batch_size: Rows that ran together.
        queue_us: From the whole request to the batch that carried it.
        compute_us: Of the batch, on the device.
        total_us: From the whole request to the answer.
        synthetic: A probe, not a user.
        stage: `model`, `preprocess` or `postprocess`.
        traffic: How it came to its generation, see `Arm`; empty where the endpoint has no split.
    """

    seq: int
    t: float
    endpoint: str
    generation: int
    bundle: str
    replica: str
    device: str
    status: int
    error: str
    batch_size: int
    queue_us: int
    compute_us: int
    total_us: int
    synthetic: bool
    stage: str
    traffic: str


class EventRing:
    """The last `RING` events."""

    __slots__ = ("_first", "_next", "_ring", "boot")

    def __init__(self) -> None:
        self.boot = new_token(8)
        self._ring: deque[Ended] = deque(maxlen=RING)
        self._first = self._next = time.time_ns() // 1000

    def extend(self, rows: list[Ended]) -> None:
        """Append many, oldest first."""
        self._ring.extend(rows)
        self._next += len(rows)

    def read(self, after: int, limit: int) -> dict[str, object]:
        """Return events with `seq > after`, oldest first, at most `limit`; `lost` = how many of them the ring has dropped."""
        oldest = self._next - len(self._ring)
        start = max(after + 1, oldest)
        stop = max(start, min(self._next, start + limit))
        rows = islice(self._ring, start - oldest, stop - oldest)
        found = [_event(seq, row)._asdict() for seq, row in enumerate(rows, start)]
        last = stop - 1 if stop > start else max(after, self._next - 1)
        lost = max(0, oldest - max(after + 1, self._first))
        return {"boot": self.boot, "events": found, "last": last, "lost": lost}


def _event(seq: int, row: Ended) -> Event:
    (
        t,
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
        probe,
        arm,
    ) = row
    return Event(
        seq,
        t,
        endpoint,
        number,
        generation.bundle if generation else "",
        replica,
        generation.device if generation else "",
        status,
        error,
        batch_size,
        int(queue_s * 1e6),
        compute_us,
        int(total_s * 1e6),
        probe,
        stage,
        arm.traffic if arm else "",
    )
