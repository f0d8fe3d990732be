"""Requests of endpoints whose next generation is tried: counted under how they were dealt, answered by stable where the canary fails,
copied where the table says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from orchestrator.serving.dispatch.dispatcher import Dispatcher
from orchestrator.serving.dispatch.lanes import Caller, Lane, Request
from orchestrator.serving.dispatch.refusals import no_replica
from orchestrator.serving.errors import RequestError
from orchestrator.serving.observe.arms import Arm
from orchestrator.serving.protocol.oip import LAST, InferRequest
from orchestrator.serving.protocol.signature import fit
from orchestrator.serving.router.attempt import Attempt
from orchestrator.serving.router.chain import signature_of, start
from orchestrator.serving.router.mirror import NOTHING, Original
from orchestrator.serving.router.routes import EndpointRoute, Place
from orchestrator.serving.router.trial import Client, Dealt, Trial

if TYPE_CHECKING:
    from orchestrator.serving.router.admission import Admission

_QUEUE_SHARE: Final = 0.5
"""Of a client's patience: for so long its request waits in the canary's queue; the rest is stable's."""
_RUN_SHARE: Final = 0.8
_PATIENT_S: Final = 5.0
"""Of a client that waits at least so long, `_RUN_SHARE` is for the whole of the canary's part: a replica may hang."""


class Asked(NamedTuple):
    """What a client wants; times are of `time.monotonic()`."""

    infer: InferRequest
    arrived: float
    deadline: float
    synthetic: bool


class Trying:
    """Lets in the requests of endpoints that have a split.

    Args:
        admission: Starts and refuses.
    """

    def __init__(self, admission: Admission, dispatcher: Dispatcher) -> None:
        self._admission = admission
        self._dispatcher = dispatcher

    def submit(self, client: Client, place: Place, trial: Trial, asked: Asked) -> None:
        """Choose the generation, compare the request with its model, and queue it.

        Raises:
            RequestError: No generation has a weight; nothing was written down.
        """
        route = place[0]
        dealt = trial.deal(client, place[1], synthetic=asked.synthetic)
        if dealt.lane is None:
            route.choose(place[1])  # says why
            return
        if dealt.fallible:
            self._attempt(client, route, trial, dealt, asked)
            return
        caller: Caller = client
        mirrored = dealt.lane is trial.stable and dealt.arm.traffic in ("weighted", "sticky")
        if mirrored and trial.mirror.takes():
            caller = Original(client, asked.infer, trial.mirror)
        self._submit(caller, route, dealt.lane, dealt.arm, dealt.user, asked)

    def _submit(self, caller: Caller, route: EndpointRoute, lane: Lane, arm: Arm, user: int, asked: Asked) -> None:
        request = _request(caller, lane, arm, user, asked)
        try:
            self._start(request, asked.infer)
        except RequestError as error:
            self._refuse(request, route, error)

    def _start(self, request: Request, asked: InferRequest) -> None:
        lane = request.lane
        if lane.signature is None:
            self._dispatcher.check_room(lane, request.arrived)
        request.fitted = fit(asked, signature_of(lane))
        start(request, self._dispatcher)

    def _refuse(self, request: Request, route: EndpointRoute, error: RequestError) -> None:
        """Write down, and tell unless another generation goes on, that a request was not taken."""
        place, lane = (route, None), request.lane
        self._admission.refuse(request.caller, place, lane, error, request.arrived, request.synthetic, request.arm)
        self._judge(request, error.status, error.kind)

    # --- the canary ---

    def _attempt(self, client: Client, route: EndpointRoute, trial: Trial, dealt: Dealt, asked: Asked) -> None:
        lane = trial.canary
        attempt = Attempt(client, lambda caller: self._fall_back(caller, route, trial, asked), self._settle)
        request = attempt.request = _request(attempt, lane, dealt.arm, dealt.user, asked)
        patience_s = asked.deadline - asked.arrived
        request.leave_at = asked.arrived + patience_s * _QUEUE_SHARE
        if patience_s >= _PATIENT_S:
            request.give_up_at = asked.arrived + patience_s * _RUN_SHARE
        try:
            if not lane.ready:
                if lane.lazy:
                    self._dispatcher.check_room(lane, asked.arrived)  # has it loaded
                raise no_replica(lane)
            self._start(request, asked.infer)
        except RequestError as error:
            self._refuse(request, route, _blame(error, request, trial.stable, asked.infer))

    def _judge(self, request: Request, status: int, kind: str) -> None:
        self._dispatcher.tell(request, status, kind, self._dispatcher.clock() - request.arrived, None)

    def _settle(self, request: Request, status: int, kind: str) -> None:
        request.handed_on = False
        self._judge(request, status, kind)
        request.handed_on = True  # whoever is still busy with its end tells nobody

    def _fall_back(self, caller: Caller, route: EndpointRoute, trial: Trial, asked: Asked) -> bool:
        """Hand a request that the canary has failed to stable; false where it is too late, or stable is gone."""
        lane, now = trial.stable, self._dispatcher.clock()
        if now >= asked.deadline or (lane.retired and all(replica.draining for replica in lane.replicas)):
            return False
        arm = trial.arm(lane.generation.generation, "fallback")
        self._submit(caller, route, lane, arm, -1, asked._replace(arrived=now))
        return True


def _request(caller: Caller, lane: Lane, arm: Arm, user: int, asked: Asked) -> Request:
    infer = asked.infer
    priority = lane.settings.priority if infer.priority == LAST else infer.priority
    return Request(
        caller, lane, NOTHING, infer.id, asked.arrived, asked.deadline, asked.synthetic, priority, arm=arm, user=user
    )


def _blame(error: RequestError, request: Request, stable: Lane, asked: InferRequest) -> RequestError:
    """Return whose fault a refusal is: inputs that stable would take are none of the client's mistakes."""
    if request.fitted is not NOTHING or error.status >= 500 or stable.signature is None:
        return error
    try:
        fit(asked, signature_of(stable))
    except RequestError:
        return error
    text = f"generation {request.lane.version} does not take what {stable.version} takes: {error.message}"
    return RequestError(text, status=500, kind="incompatible")
