"""A device slot and whose turn it is: endpoints that share a slot get device time by their shares. No sockets, no clock.

Start-time fair queueing: a batch starts at virtual time max(the slot's clock, the end of its endpoint's last batch) and ends
its device time divided by the endpoint's share later; the least start goes next, and the clock is the start of the batch that
went last. An endpoint that was idle begins at the clock, so that it has no claim to the time that it did not use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from orchestrator.serving.dispatch.lanes import Batch, Lane, Replica

UNLIMITED: Final = 1 << 30
_LOOK_AHEAD: Final = 256
"""Requests that are looked at to see whether a batch is full."""
_MEMORY: Final = 0.2
"""Weight of the newest batch in a mean of device times."""
_LONG_US: Final = 2000.0
"""Device time of a batch beside which the way of the next one to the replica, about 0.2 ms, is nothing."""


@dataclass(slots=True)
class Flow:
    """What one endpoint uses of a slot.

    Attributes:
        end: Virtual time at which its last batch ends, us of device time by share.
        mean_us: Of the device time of its batches: what a batch is charged until its reply says what it took.
        share: Of the slot, relative to the other endpoints.
    """

    end: float = 0.0
    mean_us: float = 0.0
    share: float = 1.0


class Slot:
    """One device slot, as far as the router sees it: at most `depth` batches are on their way to it at once.

    Args:
        name: Unique on the site; empty for a replica that shares with nobody.
    """

    __slots__ = ("clock", "depth", "flows", "free", "name", "replicas")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.replicas: list[Replica] = []
        self.depth = self.free = 0 if name else UNLIMITED
        self.flows: dict[str, Flow] = {}
        self.clock = 0.0

    @property
    def shared(self) -> bool:
        """Whether replicas compete for it."""
        return len(self.replicas) > 1

    def join(self, replica: Replica, depth: int) -> None:
        """A replica of this slot has registered; its session takes `depth` batches at once."""
        self.replicas.append(replica)
        if self.name and depth > self.depth:
            self.free += depth - self.depth
            self.depth = depth

    def leave(self, replica: Replica, batches: int) -> None:
        """The replica is gone, and with it so many batches that were on their way."""
        if replica in self.replicas:
            self.replicas.remove(replica)
            self.free += batches
            self.flows = {name: flow for name, flow in self.flows.items() if self._has(name)}

    def _has(self, endpoint: str) -> bool:
        return any(replica.endpoint == endpoint for replica in self.replicas)

    def start_of(self, endpoint: str) -> float:
        """Return the virtual time at which the endpoint's next batch would start."""
        flow = self.flows.get(endpoint)
        return self.clock if flow is None or flow.end < self.clock else flow.end

    def next(self, now: float) -> tuple[Replica, Lane] | None:
        """Return which replica runs which lane next, or None where nothing can run now."""
        if len(self.replicas) == 1 and len(self.replicas[0].lanes) == 1:
            return _only(self.replicas[0], now)
        found: tuple[Replica, Lane] | None = None
        best = (0.0, 0.0)
        for replica in self.replicas:
            if replica.credits <= 0 or replica.draining or replica.late:
                continue
            start = self.start_of(replica.endpoint)
            for lane in replica.lanes:
                if lane.queue and due(lane, replica, now):
                    rank = (start, lane.queue[0].arrived)
                    if found is None or rank < best:
                        found, best = (replica, lane), rank
        return found

    def charge(self, batch: Batch, endpoint: str, share: float) -> None:
        """The batch goes out: the endpoint pays what its batches take on average."""
        flow = self.flows.get(endpoint)
        if flow is None:
            flow = self.flows[endpoint] = Flow(self.clock)
        flow.share = share
        self.clock = self.start_of(endpoint)
        batch.charged_us = flow.mean_us
        flow.end = self.clock + flow.mean_us / share

    def settle(self, batch: Batch, endpoint: str, compute_us: int) -> None:
        """The batch is done: what it really took is paid."""
        flow = self.flows.get(endpoint)
        if flow is None or batch.charged_us < 0:
            return
        flow.end += (compute_us - batch.charged_us) / flow.share
        flow.mean_us += (compute_us - flow.mean_us) * (_MEMORY if flow.mean_us else 1.0)


def _only(replica: Replica, now: float) -> tuple[Replica, Lane] | None:
    """The usual case is quick: nobody to compare with."""
    lane = replica.lanes[0]
    if not lane.queue or replica.credits <= 0 or replica.draining or replica.late:
        return None
    return (replica, lane) if due(lane, replica, now) else None


def due(lane: Lane, replica: Replica, now: float) -> bool:
    """Return whether a lane that has requests may run: its batch is full, or a request has waited as long as it may.

    A replica that computes for long takes a batch ahead only when it is full: one that is sent half empty now would shut out
    what comes before its turn.
    """
    computing = replica.mean_us >= _LONG_US and bool(replica.batches)
    if not lane.delay_s and not computing:
        return True
    latest, most, rows = now - lane.delay_s, replica.most_rows(lane), 0
    key = lane.queue[0].fitted.key
    for seen, request in enumerate(lane.queue):
        rows += request.fitted.rows if request.fitted.key == key else 0
        if rows >= most or seen >= _LOOK_AHEAD:
            return True
        if not computing and (request.arrived <= latest or request.deadline <= now + lane.delay_s):
            return True
    return False


def computed(replica: Replica, compute_us: int) -> None:
    """Take the device time of a batch into the replica's mean."""
    replica.mean_us += (compute_us - replica.mean_us) * (_MEMORY if replica.mean_us else 1.0)


def wait_s(lane: Lane, now: float) -> float:
    """Return when the lane's delay is over; negative once it is."""
    return min(request.arrived for request in lane.queue) + lane.delay_s - now
