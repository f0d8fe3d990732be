"""The moving parts of dispatch: a waiting request, the lane of a generation, a registered replica, a batch on its way."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.serving.dispatch.fairness import UNLIMITED, Slot
from orchestrator.serving.dispatch.pace import Pace
from orchestrator.serving.errors import RequestError
from orchestrator.serving.observe.arms import Arm
from orchestrator.serving.observe.statistics import LaneStatistics
from orchestrator.serving.protocol.answer import AnswerForms
from orchestrator.serving.protocol.oip import LAST
from orchestrator.serving.protocol.signature import Fitted, Signature
from orchestrator.serving.protocol.tensors import Buffer, Tensor
from orchestrator.serving.serve_settings import DEFAULTS, MODEL, STAGE_DEVICE, ServeSettings, Stage
from orchestrator.serving.table import Generation


class Caller(Protocol):
    """Who waits for the answer of a request, by whatever protocol."""

    @property
    def done(self) -> bool:
        """Whether an answer was given."""
        ...

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more."""
        ...

    def answer(self, request: Request, outputs: Sequence[Tensor]) -> None:
        """Answer with success; a second answer is ignored.

        Raises:
            RequestError: The protocol cannot carry these outputs.
        """
        ...

    def refuse(self, error: RequestError, lane: Lane | None) -> None:
        """Answer with an error; a second answer is ignored."""
        ...


@dataclass(slots=True, eq=False)
class Request:
    """A request that fits its lane's model and waits or runs. Times are of `time.monotonic()`.

    Attributes:
        priority: Smaller goes first.
        ran: Replica, rows of its batch and device time in us; set where the lane is one of several stages, and where `arm` is.
        arm: What it is counted under; None where the endpoint has no split.
        user: Of the client that sent it, by the sticky header; see `orchestrator.serving.split.user_of`. -1 where nobody asked.
        fell_back: The canary has failed it: the stable generation answers in its place.
        handed_on: Stable was asked in the canary's place: when that has ended, who asked counts how the canary's part ended.
        shared: Counted with it: stable has not answered either, so that the request may be to blame.
        flags: What its outputs hold besides numbers, see `orchestrator.serving.link.wire.NONFINITE`.
        leave_at: Until when it waits in a queue of a lane whose requests another generation can answer.
        give_up_at: Until when it runs there.
    """

    caller: Caller
    lane: Lane
    fitted: Fitted
    request_id: str | None
    arrived: float
    deadline: float
    synthetic: bool
    priority: int = LAST
    sent: float = 0.0
    attempts: int = 0
    ran: tuple[str, int, int] = ("", 0, 0)
    arm: Arm | None = None
    user: int = -1
    fell_back: bool = False
    handed_on: bool = False
    shared: bool = False
    flags: int = 0
    leave_at: float = math.inf
    give_up_at: float = math.inf


@dataclass(slots=True, eq=False)
class Lane:
    """One FIFO: an endpoint's generation, or a stage before or after its model.

    Attributes:
        headers: Header lines of every answer, rendered.
        answers: What HTTP answers share.
        grpc_head: What every gRPC answer begins with, rendered by the first.
        signature: Of the bundle's model; None until a first replica has registered.
        replicas: Those that serve this lane.
        in_flight: Requests that a replica holds.
        lonely_since: Since when no replica is there; `time.monotonic()`.
        retired: No longer in the table: what waits is answered, nothing new comes.
        settings: What the bundle says about serving.
        delay_s: How long the oldest request may wait for others to share its batch.
        most_rows: Of one batch, whatever the replica would take.
        timed: A timer will look at the lane when its delay is over.
        lazy: Its model is loaded when it is asked for.
        cold: Slots that have loaded and checked the model before, and would load it again.
        trouble: Why it cannot be loaded, until `blocked_until`.
        woken_at: When an agent was asked to load it.
        load_s: What its last load took.
        pace: How fast it is served.
        stage: `model`, or what its replicas compute before or after it.
        before: Of a model's lane: its preprocessing; None where clients send the model's inputs.
        after: Of a model's lane: its postprocessing.
        expected: Requests that an earlier stage holds and that come here next.
        outside: Of a model's lane with stages: what clients send and get, once known.
        chained: Whether it is one of several stages: then `Chain` records how a request ended.
        tried: Of a canary: some of its requests leave when nobody serves them.
        faces: The generation and the headers as each replica shows them; see `wear`.
    """

    endpoint: str
    generation: Generation
    lonely_since: float
    queue: deque[Request] = field(default_factory=deque[Request])
    signature: Signature | None = None
    replicas: list[Replica] = field(default_factory=list["Replica"])
    in_flight: int = 0
    retired: bool = False
    headers: bytes = b""
    grpc_head: bytes = b""
    answers: AnswerForms = field(default_factory=AnswerForms)
    version: str = ""
    statistics: LaneStatistics = field(default_factory=LaneStatistics)
    settings: ServeSettings = DEFAULTS
    delay_s: float = 0.0
    most_rows: int = UNLIMITED
    timed: bool = False
    lazy: bool = False
    cold: int = 0
    trouble: str = ""
    blocked_until: float = 0.0
    woken_at: float = 0.0
    load_s: float = 0.0
    pace: Pace = field(default_factory=Pace)
    stage: Stage = MODEL
    before: Lane | None = None
    after: Lane | None = None
    expected: int = 0
    outside: Signature | None = None
    chained: bool = False
    tried: bool = False
    faces: dict[tuple[str, str, str], tuple[Generation, bytes]] = field(
        default_factory=dict[tuple[str, str, str], tuple[Generation, bytes]]
    )

    def __post_init__(self) -> None:
        self.headers = _headers(self.generation)
        self.version = str(self.generation.generation)
        self.delay_s = self.settings.max_queue_delay_ms / 1000
        self.most_rows = self.settings.max_batch or UNLIMITED

    def update(self, generation: Generation) -> None:
        """Take over the same generation of a new table: its state or weight may have changed."""
        self.generation = generation
        self.faces.clear()

    def wear(self, replica: Replica) -> None:
        """Name the build and the device of this replica in the next answers, where the generation has one for each SoC."""
        key = (replica.device, *replica.build)
        face = self.faces.get(key)
        if face is None:
            shown = self.generation.face(replica.build, replica.device)
            if shown is None:
                return
            face = self.faces[key] = (shown, _headers(shown))
        if face[0] is not self.generation:
            self.generation, self.headers = face
            self.grpc_head = b""

    def retry_after_s(self, now: float) -> int:
        """Return when what waits now will have been served, by what was measured; whole seconds, at least 1."""
        return self.pace.retry_after_s(now, self.statistics.succeeded, len(self.queue))

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs, or is on its way here."""
        return bool(self.queue) or self.in_flight > 0 or self.expected > 0

    @property
    def stages(self) -> list[Lane]:
        """Of a model's lane: all lanes that a request passes, in order."""
        return [lane for lane in (self.before, self, self.after) if lane is not None]

    @property
    def ready(self) -> int:
        """Of a model's lane: how many replicas serve requests, by the stage that has the fewest."""
        return min(map(_alive, self.stages)) if self.chained else _alive(self)

    def takes(self, replica: Replica) -> bool:
        """Return whether the replica computes this stage of this build, whatever it runs on."""
        same = (replica.endpoint, replica.stage) == (self.endpoint, self.stage)
        return same and self.generation.runs(replica.build)

    def fits(self, device: str, build: tuple[str, str]) -> bool:
        """Return whether a replica of the build must run on this device."""
        return device == STAGE_DEVICE if self.stage != MODEL else self.generation.face(build, device) is not None


@dataclass(slots=True, eq=False)
class Batch:
    """Requests that run together.

    Attributes:
        charged_us: What its endpoint has paid for it in advance; negative where nobody shares the slot.
        begun: When it was sent; `time.monotonic()`.
        held: Whether it holds a turn of its slot.
    """

    number: int
    requests: list[Request]
    rows: list[int]
    charged_us: float = -1.0
    begun: float = 0.0
    held: bool = True


@dataclass(slots=True, eq=False)
class Replica:
    """A registered replica.

    Attributes:
        send: Writes a frame to it.
        credits: Batches it may be sent now.
        batches: Sent and not answered, by number, oldest first.
        lanes: The generations it serves: those of its endpoint with its bundle.
        slot: The device slot that it shares with other replicas.
        depth: Batches that its session takes at once.
        gears: Most rows of one batch by the shapes of the inputs without axis 0, where it was compiled for some shapes only.
        mean_us: Of the device time of its last batches.
        late: A batch of it has held its slot's turn for so long that it was given to others: it gets no more meanwhile.
        stuck: It has been silent about a batch for far longer than it ever took.
    """

    name: str
    pid: int
    endpoint: str
    bundle: str
    runtime: str
    device: str
    signature: Signature
    send: Callable[[Sequence[Buffer]], None]
    credits: int = 0
    draining: bool = False
    batches: dict[int, Batch] = field(default_factory=dict[int, Batch])
    lanes: list[Lane] = field(default_factory=list[Lane])
    variant: str = ""
    stage: str = MODEL
    slot: Slot = field(default_factory=Slot)
    depth: int = UNLIMITED
    gears: Mapping[tuple[tuple[int, ...], ...], int] = field(default_factory=dict[tuple[tuple[int, ...], ...], int])
    mean_us: float = 0.0
    late: bool = False
    stuck: bool = False

    def most_rows(self, lane: Lane) -> int:
        """Return how many rows the next batch of a lane that has requests may have."""
        most = self.signature.max_batch
        if self.gears:
            most = self.gears.get(lane.queue[0].fitted.key, most)
        return min(lane.most_rows, most)

    @property
    def build(self) -> tuple[str, str]:
        """What it has loaded: bundle and variant."""
        return self.bundle, self.variant


def _alive(lane: Lane) -> int:
    return sum(not replica.stuck for replica in lane.replicas)


def _headers(generation: Generation) -> bytes:
    safe = generation.device.encode("ascii", "backslashreplace").decode()
    return f"x-orchestrate-bundle: {generation.bundle}\r\nx-orchestrate-device: {safe}\r\n".encode()


def attach(replica: Replica, lane: Lane) -> None:
    """Let the replica serve the lane."""
    lane.replicas.append(replica)
    if lane.signature is None or not lane.generation.builds or replica.signature.max_batch < lane.signature.max_batch:
        lane.signature = replica.signature
    replica.lanes.append(lane)
