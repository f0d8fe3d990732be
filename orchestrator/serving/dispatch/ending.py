"""How a request ends: its caller is answered, once, and it is written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from orchestrator.serving.dispatch.lanes import Request
from orchestrator.serving.errors import RequestError
from orchestrator.serving.observe.arms import Arm
from orchestrator.serving.observe.record import Recorder
from orchestrator.serving.protocol.tensors import Tensor
from orchestrator.serving.serve_settings import MODEL


class Witness(Protocol):
    """Compares generations. Called on the event loop: it must be quick."""

    def ended(self, request: Request, status: int, kind: str, total_s: float, outputs: Sequence[Tensor] | None) -> None:
        """A request that has an `arm` has ended there; `outputs` are the model's, None without success."""
        ...

    def paired(
        self, stable: Request, stable_outputs: Sequence[Tensor], canary: Request, canary_outputs: Sequence[Tensor]
    ) -> None:
        """Both generations have answered the same request."""
        ...

    def unpaired(self, arm: Arm, why: Literal["dropped", "failed"]) -> None:
        """A copy was not sent, or it failed."""
        ...


class Ending:
    """The part of the dispatcher that ends requests.

    Attributes:
        recorder: Told of all that ends.
        witness: Told of requests that have an arm; None where nobody compares.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.witness: Witness | None = None

    def tell(self, request: Request, status: int, kind: str, total_s: float, outputs: Sequence[Tensor] | None) -> None:
        """Tell the witness how a request ended, where it is one that is compared and nobody tells later."""
        if request.arm is not None and not request.handed_on and self.witness is not None:
            self.witness.ended(request, status, kind, total_s, outputs)

    def _finish(
        self,
        request: Request,
        status: int,
        kind: str,
        now: float,
        replica: str = "",
        batch: int = 0,
        compute_us: int = 0,
    ) -> None:
        lane, queue_s, total_s = request.lane, (request.sent or now) - request.arrived, now - request.arrived
        if lane.chained and lane.stage == MODEL:
            return  # the chain records the whole
        lane.statistics.ended(
            ok=status == 200, rows=request.fitted.rows, queue_s=queue_s, compute_us=compute_us, total_s=total_s
        )
        self.recorder.record(
            lane.endpoint,
            lane.generation,
            status,
            kind,
            replica=replica,
            batch_size=batch,
            queue_s=queue_s,
            compute_us=compute_us,
            total_s=total_s,
            synthetic=request.synthetic,
            caller=request.caller,
            stage=lane.stage,
            arm=request.arm,
        )

    def _fail(self, request: Request, error: RequestError, now: float, replica: str = "") -> None:
        caller = request.caller
        if caller.done:
            return
        gone = caller.gone
        caller.refuse(error, request.lane)
        status, kind = (499, "client_gone") if gone else (error.status, error.kind)
        self._finish(request, status, kind, now, replica)
        if request.arm is not None:
            self.tell(request, status, kind, now - request.arrived, None)

    def _answer(
        self, request: Request, outputs: list[Tensor], replica: str, now: float, rows: int, compute_us: int
    ) -> None:
        caller = request.caller
        if caller.done:
            return
        gone = caller.gone
        if request.lane.chained or request.arm is not None:
            request.ran = (replica, rows, compute_us)
        try:
            caller.answer(request, outputs)
        except RequestError as error:
            self._fail(request, error, now, replica)
            return
        status, kind = (499, "client_gone") if gone else (200, "")
        self._finish(request, status, kind, now, replica, rows, compute_us)
        if request.arm is not None:
            self.tell(request, status, kind, now - request.arrived, outputs)
