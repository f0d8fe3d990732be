"""A user's request at a generation that is tried: what that one fails, the stable one answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.serving.dispatch.lanes import Caller, Lane, Request
from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.tensors import Tensor

FallBack = Callable[[], bool]
"""Hand the request to the stable generation; false where that cannot take it, and the error must do."""


class Attempt:
    """Towards the canary's lane the caller; the client, `outer`, hears of success alone while another can answer.

    Args:
        fall_back: Called once, while the client still waits.
    """

    __slots__ = ("_ended", "_fall_back", "outer", "request")

    def __init__(self, outer: Caller, fall_back: FallBack) -> None:
        self.outer = outer
        self.request: Request | None = None
        self._fall_back = fall_back
        self._ended = False

    @property
    def done(self) -> bool:
        """Whether the canary's part is over."""
        return self._ended or self.outer.done

    @property
    def gone(self) -> bool:
        """Whether the client waits no more."""
        return self.outer.gone

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
        if request is not None and is_fault(error) and not self.outer.gone:
            request.fell_back = True
            if self._fall_back():
                return
            request.fell_back = False
        self.outer.refuse(error, lane)


def is_fault(error: RequestError) -> bool:
    """Tell whether another generation may do better: everything but what the client did wrong."""
    return error.status >= 500 or error.status == 429
