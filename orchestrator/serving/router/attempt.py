"""A user's request at a generation that is tried: what that one fails, the stable one answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from orchestrator.serving.dispatch.lanes import Caller, Lane, Request
from orchestrator.serving.errors import RequestError
from orchestrator.serving.observe.arms import Arm
from orchestrator.serving.protocol.tensors import Tensor
from orchestrator.serving.router.between import Between

FallBack = Callable[[Caller], bool]
"""Hand the request to the stable generation, whose answer goes to this caller; false where it cannot take it any more."""
Judge = Callable[[Request, int, str], None]
"""Count how the canary's part has ended: status and kind."""

REJECTED: Final = "rejected"
"""Kind of the error with which a model, not its signature, refuses an input: the client's mistake, if stable finds so too."""


class Attempt(Between):
    """Towards the canary's lane the caller; the client, `outer`, hears of success alone while another can answer.

    Args:
        fall_back: Called once at most, while the client still waits.
        judge: Called where it is stable's answer that tells whose mistake it was.
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
        if request is not None and not self.outer.gone:
            if error.kind == REJECTED:
                if self._ask_stable(request):
                    return
            elif is_fault(error):
                request.fell_back = True
                if self._fall_back(self.outer):
                    return
                request.fell_back = False
        self.outer.refuse(error, lane)

    def _ask_stable(self, request: Request) -> bool:
        """Let stable judge; until then the request is counted nowhere."""
        arm, request.arm = request.arm, None
        if arm is not None and self._fall_back(SecondOpinion(self.outer, request, arm, self._judge)):
            return True
        request.arm = arm
        return False


class SecondOpinion(Between):
    """The caller of a request that the canary's model has rejected, at stable: it is the client's mistake where both agree."""

    __slots__ = ("_arm", "_judge", "_request")

    def __init__(self, outer: Caller, request: Request, arm: Arm, judge: Judge) -> None:
        super().__init__(outer)
        self._request, self._arm, self._judge = request, arm, judge

    def answer(self, request: Request, outputs: Sequence[Tensor]) -> None:
        """Answer the client: the canary was wrong.

        Raises:
            RequestError: Its protocol cannot carry these outputs.
        """
        self.outer.answer(request, outputs)
        self._request.fell_back = True
        self._settle(500, "wrongly_rejected")

    def refuse(self, error: RequestError, lane: Lane | None) -> None:
        """Answer the client with stable's error."""
        self.outer.refuse(error, lane)
        self._settle(400, REJECTED)

    def _settle(self, status: int, kind: str) -> None:
        if self._request.arm is None:
            self._request.arm = self._arm
            self._judge(self._request, status, kind)


def is_fault(error: RequestError) -> bool:
    """Tell whether another generation may do better: everything but what the client did wrong."""
    return error.status >= 500 or error.status == 429
