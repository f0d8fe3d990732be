"""The errors with which the dispatcher ends a request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from orchestrator.serving.dispatch.lanes import Lane, Replica, Request
from orchestrator.serving.dispatch.queueing import take_useless
from orchestrator.serving.errors import RequestError


def queue_full(lane: Lane, now: float) -> RequestError:
    """Return the error of a request for which there is no room."""
    again_s = lane.retry_after_s(now)
    return RequestError("too many requests are waiting", status=429, kind="queue_full", retry_after_s=again_s)


def no_replica(lane: Lane) -> RequestError:
    """Return the error of a lane that nobody serves."""
    text = f"generation {lane.version} of {lane.endpoint} has no replica that is ready"
    return RequestError(text, status=503, kind="no_replica", retry_after_s=1)


def replicas_lost(request: Request, now: float) -> RequestError:
    """Return the error of a request that has cost two replicas."""
    text, again_s = "two replicas ended while they computed this request", request.lane.retry_after_s(now)
    return RequestError(text, status=503, kind="replica_lost", retry_after_s=again_s)


def lost_once() -> RequestError:
    """Return the error of a request that has cost the last replica of its lane."""
    return RequestError("the replica ended while it computed this request", status=503, kind="replica_lost")


def waited_long(request: Request) -> RequestError:
    """Return the error of a request that would wait longer here than it may."""
    text = f"generation {request.lane.version} of {request.lane.endpoint} has not begun with this request in time"
    return RequestError(text, status=503, kind="overload")


def hangs(request: Request) -> RequestError:
    """Return the error of a request whose replica does not come back with it."""
    text = f"the replica of generation {request.lane.version} of {request.lane.endpoint} does not answer"
    return RequestError(text, status=503, kind="replica_hangs")


def no_use(request: Request) -> RequestError:
    """Return the error of a request that nobody waits for, or that is too late."""
    if request.caller.gone:
        return RequestError("the client has gone", status=499, kind="client_gone")
    return too_late()


def too_late() -> RequestError:
    """Return the error of a request whose deadline has passed."""
    return RequestError("the request was not answered in time", status=504, kind="timeout")


def is_loading(lane: Lane, now: float) -> RequestError:
    """Return the error of a request that has waited long for its model to be loaded."""
    text = f"generation {lane.version} of {lane.endpoint} is being loaded"
    again_s = max(1, math.ceil(lane.load_s - (now - lane.woken_at)))
    return RequestError(text, status=503, kind="loading", retry_after_s=again_s)


def cannot_load(lane: Lane, now: float) -> RequestError:
    """Return the error of a model that could not be loaded."""
    text = f"generation {lane.version} of {lane.endpoint} cannot be loaded: {lane.trouble.partition(chr(10))[0]}"
    again_s = max(1, math.ceil(lane.blocked_until - now))
    return RequestError(text, status=503, kind="no_replica", retry_after_s=again_s)


def refuse_stuck(lane: Lane, now: float) -> None:
    """Refuse a request whose model could not be loaded, while it is too early to try again.

    Raises:
        RequestError: 503 with the reason.
    """
    if lane.trouble and now < lane.blocked_until:
        raise cannot_load(lane, now)


def overdue(lane: Lane, now: float, grace_s: float) -> Iterator[tuple[Request, RequestError]]:
    """Take out of the queue what nobody waits for, what is too late, and what no replica will come for."""
    for request in take_useless(lane.queue, now):
        yield request, no_use(request)
    if lane.tried:
        yield from _leaving(lane, now)
    if lane.replicas or not lane.queue:
        return
    if lane.retired or (not lane.lazy and now - lane.lonely_since > grace_s):
        while lane.queue:
            yield lane.queue.popleft(), no_replica(lane)
    elif lane.lazy:
        late = [request for request in lane.queue if now - request.arrived > grace_s]
        for request in late:
            lane.queue.remove(request)
            yield request, is_loading(lane, now)


def _leaving(lane: Lane, now: float) -> Iterator[tuple[Request, RequestError]]:
    """Take out what another generation can answer and this one does not."""
    nobody = not lane.ready
    leaving = [r for r in lane.queue if r.leave_at < math.inf and (nobody or now >= r.leave_at)]
    for request in leaving:
        lane.queue.remove(request)
        if request.attempts:
            yield request, lost_once()
        elif nobody:
            yield request, no_replica(lane)
        else:
            yield request, waited_long(request)


def expired(replicas: Sequence[Replica], now: float) -> list[tuple[Request, str]]:
    """Return the requests that run and have run for too long, with the names of the replicas."""
    return [
        (request, replica.name)
        for replica in replicas
        for batch in replica.batches.values()
        for request in batch.requests
        if request.deadline <= now or request.give_up_at <= now
    ]
