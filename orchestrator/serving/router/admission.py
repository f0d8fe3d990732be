"""From a parsed request to the dispatcher: the same path for every protocol, and the same record of what was refused."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from orchestrator.serving.dispatch.dispatcher import Dispatcher
from orchestrator.serving.dispatch.lanes import Caller, Lane, Request
from orchestrator.serving.errors import RequestError
from orchestrator.serving.observe.arms import Arm
from orchestrator.serving.observe.record import Recorder
from orchestrator.serving.protocol.oip import LAST, InferRequest
from orchestrator.serving.protocol.signature import fit
from orchestrator.serving.router.chain import Chain, signature_of
from orchestrator.serving.router.routes import Place
from orchestrator.serving.router.trying import Asked, Trying

if TYPE_CHECKING:
    from orchestrator.serving.router.trial import Client


class Admission:
    """Lets requests in.

    Args:
        request_timeout_s: From the whole request to its answer; a client may ask for less.
    """

    def __init__(self, dispatcher: Dispatcher, recorder: Recorder, request_timeout_s: float) -> None:
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._timeout_s = request_timeout_s
        self._trying = Trying(self, dispatcher)

    def submit(
        self, caller: Client, place: Place, asked: InferRequest, arrived: float, patience_s: float, synthetic: bool
    ) -> None:
        """Choose the generation, compare the request with its model, and queue it; what is refused is answered.

        `arrived` is `time.monotonic()` when the request was whole, `patience_s` how long the client waits, infinity where
        its protocol does not say.
        """
        lane: Lane | None = None
        try:
            timeout_s = min(self._timeout_s, patience_s)
            if asked.timeout_us is not None:
                timeout_s = min(timeout_s, asked.timeout_us / 1e6)
            deadline = arrived + timeout_s
            trial = place[0].trial
            if trial is not None:
                self._trying.submit(caller, place, trial, Asked(asked, arrived, deadline, synthetic))
                return
            lane = place[0].choose(place[1])
            if lane.signature is None:
                self._dispatcher.check_room(lane, arrived)
            fitted = fit(asked, signature_of(lane))
            priority = lane.settings.priority if asked.priority == LAST else asked.priority
            request = Request(caller, lane, fitted, asked.id, arrived, deadline, synthetic, priority)
            if lane.chained:
                Chain(caller, request, self._dispatcher).start()
            else:
                self._dispatcher.submit(request)
        except RequestError as error:
            self.refuse(caller, place, lane, error, arrived, synthetic)

    def refuse(
        self,
        caller: Caller,
        place: Place,
        lane: Lane | None,
        error: RequestError,
        arrived: float,
        synthetic: bool,
        arm: Arm | None = None,
    ) -> None:
        """Answer with an error, and write it down."""
        caller.refuse(error, lane)
        took_s = time.monotonic() - arrived
        if lane is not None:
            lane.statistics.ended(ok=False, rows=0, queue_s=took_s, compute_us=0, total_s=took_s)
        self._recorder.record(
            place[0].name,
            lane.generation if lane else None,
            error.status,
            error.kind,
            queue_s=took_s,
            total_s=took_s,
            synthetic=synthetic,
            caller=caller,
            arm=arm,
        )
