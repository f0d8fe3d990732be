"""The errors with which the dispatcher ends a request."""

from __future__ import annotations

import math
from collections.abc import Iterator

from orchestrator.serving.dispatch.lanes import Lane, Request
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
