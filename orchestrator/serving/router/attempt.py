"""A user's request at a generation that is tried: what that one fails, the stable one answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from orchestrator.serving.dispatch.lanes import Caller, Lane, Request
from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.tensors import Tensor
from orchestrator.serving.router.between import Between

FallBack = Callable[[Caller], bool]
"""Hand the request to the stable generation, whose answer goes to this caller; false where it cannot take it any more."""
Judge = Callable[[Request, int, str], None]
"""Count how the canary's part has ended: status and kind."""

REJECTED: Final = "rejected"
"""Kind of the error with which a model, not its signature, refuses an input: the client's mistake, if stable finds so too."""
_ABSENT: Final = frozenset({"no_replica", "loading", "overload", "timeout"})
"""Kinds of errors of stable that say nothing of the request: it was not computed, or the canary has used up its time."""


class Attempt(Between):
    """Towards the canary's lane the caller; the client, `outer`, hears of success alone while another can answer.

    Args:
        fall_back: Called once at most, while the client still waits.
        judge: Called when stable, which was asked, has ended as well.
    """

    __slots__ = ("_ended", "_fall_back", "_judge", "request")

    def __init__(self, outer: Caller, fall_back: FallBack, judge: Judge) -> None:
        super().__init__(outer)
        self.request: Request | None = None
        self._fall_back = fall_back
        self._judge = judge
        self._ended = False

    @property
    def done(self) -> bool:
        """Whether the canary's part is over."""
        return self._ended or self.outer.done

    def answer(self, request: Request, outputs: Sequence[Tensor]) -> None:
        """Answer the client.

        Raises:
            RequestError: Its protocol cannot carry these outputs.
        """
        self.outer.answer(request, outputs)
        self._ended = True

    def refuse(self, error: RequestError, lane: Lane | None) -> None:
        """The canary has failed, or the client has made a mistake."""
        if self.done:
            return
        self._ended = True
        request = self.request
        if request is not None and not self.outer.gone and (error.kind == REJECTED or is_fault(error)):
            request.handed_on = True
            if self._fall_back(FailOver(self.outer, request, error, self._judge)):
                return
            request.handed_on = False
        self.outer.refuse(error, lane)


class FailOver(Between):
    """The caller, at stable, of a request that the canary has not answered. How stable ends tells whose fault it was; only then is
    the canary's part counted, so that nobody sees its error without knowing whether stable shares it.

    Args:
        request: The canary's.
        error: How it ended there.
    """

    __slots__ = ("_error", "_judge", "_request")

    def __init__(self, outer: Caller, request: Request, error: RequestError, judge: Judge) -> None:
        super().__init__(outer)
        self._request, self._error, self._judge = request, error, judge

    def answer(self, request: Request, outputs: Sequence[Tensor]) -> None:
        """Answer the client: the canary was wrong.

        Raises:
            RequestError: Its protocol cannot carry these outputs.
        """
        self.outer.answer(request, outputs)
        self._request.fell_back = True
        if self._error.kind == REJECTED:
            self._judge(self._request, 500, "wrongly_rejected")
        else:
            self._judge(self._request, self._error.status, self._error.kind)

    def refuse(self, error: RequestError, lane: Lane | None) -> None:
        """Answer the client with stable's error. What both reject is the client's mistake; what both fail is shared."""
        self.outer.refuse(error, lane)
        if self._error.kind == REJECTED:
            self._judge(self._request, 400, REJECTED)
            return
        self._request.fell_back = True
        self._request.shared = is_shared(error)
        self._judge(self._request, self._error.status, self._error.kind)


def is_fault(error: RequestError) -> bool:
    """Tell whether another generation may do better: everything but what the client did wrong."""
    return error.status >= 500 or error.status == 429


def is_shared(stable: RequestError) -> bool:
    """Tell whether stable's error leaves open that the request is to blame for the canary's: it failed as well, or nobody knows, as
    the client did not wait for it. A client that wants to harm a canary can do both.
    """
    if stable.kind in (REJECTED, "client_gone"):
        return True
    return stable.status >= 500 and stable.kind not in _ABSENT
