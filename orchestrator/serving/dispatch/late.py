"""Batches that do not come back: their slot's turn goes to others soon, and after a while their replica counts as stuck.

A process that hangs says nothing, and its connection stays: only time tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from orchestrator.serving.dispatch.lanes import Batch, Replica, Request

_LATE_S: Final = 1.0
_LATE_TIMES: Final = 10.0
"""A batch is late after this time, and this many times what the replica's batches take; the others of its slot then go on."""
_STUCK_S: Final = 5.0
_STUCK_TIMES: Final = 20.0
"""After this its replica is stuck: it is not waited for where another generation can answer. Never before it has answered once."""


def take_late(replicas: Iterable[Replica], now: float) -> list[Replica]:
    """Give the turns of late batches back to their slots; returns the replicas that are late from now on."""
    found: list[Replica] = []
    for replica in replicas:
        mean_s = replica.mean_us / 1e6
        for batch in replica.batches.values():
            if batch.held and now - batch.begun > max(_LATE_S, _LATE_TIMES * mean_s):
                give_back(replica, batch)
                replica.late = True
                found.append(replica)
        oldest = min((batch.begun for batch in replica.batches.values()), default=now)
        replica.stuck = mean_s > 0 and now - oldest > max(_STUCK_S, _STUCK_TIMES * mean_s)
    return found


def give_back(replica: Replica, batch: Batch) -> None:
    """The batch holds no turn of its slot any more; does nothing the second time."""
    if batch.held:
        batch.held = False
        replica.slot.free += 1


def came_back(replica: Replica, batch: Batch) -> None:
    """A batch, which is no longer among the replica's, was answered."""
    give_back(replica, batch)
    if replica.late:
        replica.late = not all(other.held for other in replica.batches.values())
        replica.stuck = False


def held(replica: Replica) -> int:
    """Return how many turns of its slot the replica's batches hold."""
    return sum(batch.held for batch in replica.batches.values())


def leaving(replicas: Iterable[Replica]) -> list[tuple[Request, str]]:
    """Return the requests that a stuck replica holds and another generation can answer, with the replica's name."""
    return [
        (request, replica.name)
        for replica in replicas
        if replica.stuck
        for batch in replica.batches.values()
        for request in batch.requests
        if request.leave_at < math.inf and not request.caller.done
    ]
