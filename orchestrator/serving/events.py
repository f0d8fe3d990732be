"""One event per finished request, in a ring; what rollouts judge and metrics count."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from orchestrator.core.ids import new_token

RING: Final = 1 << 16


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


class EventRing:
    """The last `RING` events."""

    __slots__ = ("_first", "_next", "_ring", "boot")

    def __init__(self) -> None:
        self.boot = new_token(8)
        self._ring: list[Event | None] = [None] * RING
        self._first = self._next = time.time_ns() // 1000

    def next_seq(self) -> int:
        """Return the number of the event that `add` takes next."""
        return self._next

    def add(self, event: Event) -> None:
        """Append; `event.seq` must be `next_seq()`."""
        self._ring[event.seq % RING] = event
        self._next += 1

    def read(self, after: int, limit: int) -> dict[str, object]:
        """Return events with `seq > after`, oldest first, at most `limit`; `lost` = how many of them the ring has dropped."""
        oldest = max(self._first, self._next - RING)
        start = max(after + 1, oldest)
        stop = min(self._next, start + limit)
        found = [event._asdict() for seq in range(start, stop) if (event := self._ring[seq % RING]) is not None]
        last = stop - 1 if stop > start else max(after, self._next - 1)
        lost = max(0, oldest - max(after + 1, self._first))
        return {"boot": self.boot, "events": found, "last": last, "lost": lost}
