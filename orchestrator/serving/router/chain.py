"""A request through the stages of its generation: each answer becomes the next stage's request; the client sees one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.serving.dispatch.lanes import Caller, Lane, Request
from orchestrator.serving.dispatch.refusals import no_replica
from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.oip import InferRequest
from orchestrator.serving.protocol.signature import Fitted, Signature, fit
from orchestrator.serving.protocol.tensors import Tensor

if TYPE_CHECKING:
    from orchestrator.serving.dispatch.dispatcher import Dispatcher


class Chain:
    """Towards the dispatcher the caller of each stage, towards the client the one who answers.

    What a stage refuses ends the request; its place in later stages is kept until then, so that none of them is let go.

    Args:
        outer: The client.
        asked: The client's request as it fits `client_signature`; its `lane` is the generation's.
        dispatcher: Runs the stages; its recorder learns of the whole here, and of each stage from the dispatcher.
    """

    __slots__ = (
        "_asked",
        "_batch",
        "_compute_us",
        "_dispatcher",
        "_face",
        "_left",
        "_queue_s",
        "_replica",
        "outer",
    )

    def __init__(self, outer: Caller, asked: Request, dispatcher: Dispatcher) -> None:
        self.outer = outer
        self._asked = asked
        self._dispatcher = dispatcher
        self._left: list[Lane] = []
        self._queue_s = 0.0
        self._compute_us = self._batch = 0
        self._replica = ""
        self._face = (asked.lane.generation, asked.lane.headers)

    @property
    def done(self) -> bool:
        """Whether the client has its answer."""
        return self.outer.done

    @property
    def gone(self) -> bool:
        """Whether the client waits no more."""
        return self.outer.gone

    def start(self) -> None:
        """Hand the request to the first stage.

        Raises:
            RequestError: A queue is full, or a stage has no replica; nothing was begun.
        """
        lanes = self._asked.lane.stages
        for lane in lanes[1:]:
            self._dispatcher.check_room(lane, self._asked.arrived)
        self._submit(lanes[0], self._asked.fitted, self._asked.arrived)
        self._left = list(lanes[1:])
        for lane in self._left:
            lane.expected += 1

    def _submit(self, lane: Lane, fitted: Fitted, now: float) -> None:
        asked = self._asked
        request = Request(self, lane, fitted, asked.request_id, now, asked.deadline, asked.synthetic, asked.priority)
        request.leave_at, request.give_up_at = asked.leave_at, asked.give_up_at
        self._dispatcher.submit(request)

    def answer(self, request: Request, outputs: Sequence[Tensor]) -> None:
        """Take a stage's answer: hand it on, or answer the client.

        Raises:
            RequestError: It does not fit the next stage, there is no room for it, or the client's protocol cannot carry it.
        """
        replica, rows, compute_us = request.ran
        self._asked.flags |= request.flags
        self._queue_s += request.sent - request.arrived
        self._compute_us += compute_us
        lane = self._asked.lane
        if request.lane is lane:
            self._replica, self._batch, self._face = replica, rows, (lane.generation, lane.headers)
        if not self._left:
            gone = self.outer.gone
            self._asked.ran = (self._replica, self._batch, self._compute_us)
            self._answer(lane, outputs)
            self._end(499 if gone else 200, "client_gone" if gone else "", outputs)
            return
        lane = self._left.pop(0)
        lane.expected -= 1
        self._submit(lane, _fitted(outputs, request.lane, lane), self._dispatcher.clock())

    def _answer(self, lane: Lane, outputs: Sequence[Tensor]) -> None:
        shown = (lane.generation, lane.headers, lane.grpc_head)
        if lane.generation.builds and lane.headers != self._face[1]:  # another SoC has answered since
            lane.generation, lane.headers, lane.grpc_head = *self._face, b""
        try:
            self.outer.answer(self._asked, outputs)
        finally:
            lane.generation, lane.headers, lane.grpc_head = shown

    def refuse(self, error: RequestError, lane: Lane | None) -> None:  # noqa: ARG002 - the client knows one lane
        """Answer the client with a stage's error."""
        gone = self.outer.gone
        self.outer.refuse(error, self._asked.lane)
        for later in self._left:
            later.expected -= 1
        self._left = []
        self._end(499 if gone else error.status, "client_gone" if gone else error.kind)

    def _end(self, status: int, kind: str, outputs: Sequence[Tensor] | None = None) -> None:
        asked = self._asked
        lane, total_s = asked.lane, self._dispatcher.clock() - asked.arrived
        queue_s = self._queue_s if status == 200 else min(self._queue_s, total_s)
        ok, rows = status == 200, asked.fitted.rows
        lane.statistics.ended(ok=ok, rows=rows, queue_s=queue_s, compute_us=self._compute_us, total_s=total_s)
        self._dispatcher.recorder.record(
            lane.endpoint,
            lane.generation,
            status,
            kind,
            replica=self._replica,
            batch_size=self._batch,
            queue_s=queue_s,
            compute_us=self._compute_us,
            total_s=total_s,
            synthetic=asked.synthetic,
            caller=self.outer,
            arm=asked.arm,
        )
        self._dispatcher.tell(asked, status, kind, total_s, outputs)


def start(request: Request, dispatcher: Dispatcher) -> None:
    """Hand a request to its lane, or to the stages of its lane.

    Raises:
        RequestError: There is no room, or nobody to compute it.
    """
    if request.lane.chained:
        Chain(request.caller, request, dispatcher).start()
    else:
        dispatcher.submit(request)


def signature_of(lane: Lane) -> Signature:
    """Return what clients of the generation send and get.

    Raises:
        RequestError: 503 while no replica has said so.
    """
    if lane.chained:
        return client_signature(lane)
    if lane.signature is None:
        raise no_replica(lane)
    return lane.signature


def client_signature(lane: Lane) -> Signature:
    """Return what clients of a generation with stages send and get.

    Raises:
        RequestError: 503 while a stage has no replica that said so.
    """
    if lane.outside is not None:
        return lane.outside
    found: list[Signature] = []
    for stage in lane.stages:
        if stage.signature is None:
            raise no_replica(stage)
        found.append(stage.signature)
    most = found[0].max_batch
    if most > 1:
        most = min(signature.max_batch for signature in found if signature.max_batch > 1)
    lane.outside = Signature(found[0].inputs, found[-1].outputs, most)
    return lane.outside


def _fitted(outputs: Sequence[Tensor], given_by: Lane, lane: Lane) -> Fitted:
    if lane.signature is None:
        raise no_replica(lane)
    try:
        return fit(InferRequest(None, {tensor.name: tensor for tensor in outputs}, None, True, None), lane.signature)
    except RequestError as error:
        text = f"what {given_by.stage} gave does not fit {lane.stage}: {error.message}"
        raise RequestError(text, status=500, kind="execution") from error
