"""The errors with which the dispatcher ends a request."""

from __future__ import annotations

from orchestrator.serving.errors import RequestError
from orchestrator.serving.lanes import Lane, Request


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
