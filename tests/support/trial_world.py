"""An endpoint whose second generation is tried, in a world without sockets and with a clock of its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.serving.dispatch.fairness import Slot
from orchestrator.serving.dispatch.lanes import Replica
from orchestrator.serving.errors import RequestError
from orchestrator.serving.link.frames import Frame, FrameReader, Kind, encode_tensors
from orchestrator.serving.protocol.oip import InferRequest
from orchestrator.serving.protocol.signature import Signature
from orchestrator.serving.protocol.tensors import TensorSpec, from_array
from orchestrator.serving.router.admission import Admission
from orchestrator.serving.router.routes import Routes
from orchestrator.serving.serve_settings import STAGE_DEVICE
from orchestrator.serving.table import RoutingTable
from support.dispatch_world import DEVICE, World

SWEEP_S = 0.05


@dataclass
class Person:
    """Asks, and remembers the answer."""

    headers: Mapping[str, str]
    done: bool = False
    gone: bool = False
    generation: int = 0
    value: float = math.nan
    error: RequestError | None = None
    at: float = 0.0

    world: Any = None

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def answer(self, request: Any, outputs: Any) -> None:
        assert not self.done
        self.generation, self.value = int(request.lane.version), float(outputs[0].array().ravel()[0])
        self.done, self.at = True, self.world.now

    def refuse(self, error: RequestError, lane: Any) -> None:
        assert not self.done
        self.done, self.error, self.at = True, error, self.world.now

    @property
    def status(self) -> int:
        return 0 if not self.done else self.error.status if self.error else 200


@dataclass
class Watcher:
    """What a witness is told."""

    rows: list[tuple[int, str, int, int, str, bool]] = field(default_factory=list)
    users: list[int] = field(default_factory=list)
    pairs: list[tuple[int, float, int, float]] = field(default_factory=list)
    lonely: list[str] = field(default_factory=list)

    def ended(self, request: Any, status: int, kind: str, total_s: float, outputs: Any) -> None:
        arm = request.arm
        assert (outputs is not None) == (status == 200)
        assert total_s >= 0
        self.rows.append((arm.generation, arm.traffic, arm.weight, status, kind, request.fell_back))
        self.users.append(request.user)

    def paired(self, stable: Any, stable_outputs: Any, canary: Any, canary_outputs: Any) -> None:
        one, two = (float(outputs[0].array().ravel()[0]) for outputs in (stable_outputs, canary_outputs))
        assert stable.ran[1] > 0 < canary.ran[1]
        self.pairs.append((stable.arm.generation, one, canary.arm.generation, two))

    def unpaired(self, arm: Any, why: str) -> None:
        assert arm.traffic == "mirror"
        self.lonely.append(why)

    def count(self) -> Counter[tuple[int, str]]:
        return Counter((generation, traffic) for generation, traffic, *_ in self.rows)


class TrialWorld(World):
    """Generation n of `digits` answers every row with n."""

    def __init__(self, *, queue_limit: int = 10_000, grace_s: float = 10.0, timeout_s: float = 30.0) -> None:
        super().__init__(queue_limit=queue_limit, grace_s=grace_s)
        self.routes = Routes(self.dispatcher)
        self.admission = Admission(self.dispatcher, self.dispatcher.recorder, timeout_s)
        self.watcher = self.dispatcher.witness = Watcher()
        self.modes: dict[int, str] = {}
        self.version = 0
        self.replies: list[tuple[int, int]] = []

    # --- what is served ---

    def put(self, weights: Mapping[int, int], split: Mapping[str, Any] | None = None, **states: str) -> None:
        """Switch to a table with these generations; `split` gets stable 1 and canary 2 unless it says so."""
        self.version += 1
        rows = [
            {"generation": n, "bundle": bundle(n), "path": "/none", "runtime": "onnx-cpu", "weight": weight,
             "state": states.get(f"g{n}", "live"), "device": DEVICE}
            for n, weight in weights.items()
        ]  # fmt: skip
        body: dict[str, Any] = {"pool": "edge", "generations": rows}
        if split is not None:
            body["split"] = {"stable": 1, "canary": 2, **split}
        table = {"version": self.version, "endpoints": {"digits": body}}
        self.routes.set_table(RoutingTable.from_json(table), self.now)

    def serve(
        self,
        generation: int,
        *,
        cost_s: float = 0.001,
        slot: str = "",
        depth: int = 2,
        width: int = 1,
        stage: str = "model",
    ) -> Replica:
        """Register a replica; `modes[generation]` says how its model behaves: ok, execution, rejected, or silent.

        A preprocessing replica hands its inputs on.
        """
        reader = FrameReader()

        def send(pieces: Sequence[Any]) -> None:
            for frame in reader.feed(b"".join(bytes(piece) for piece in pieces)):
                if frame.kind is Kind.BATCH:
                    self._compute_batch(replica, frame, generation, cost_s)

        given, result = TensorSpec("x", "FP32", ("batch", width)), TensorSpec("y", "FP32", ("batch", 1))
        is_model = stage == "model"
        replica = Replica(
            f"r{generation}", 1, "digits", bundle(generation), "onnx-cpu", DEVICE if is_model else STAGE_DEVICE,
            Signature((given,), (result if is_model else given,), 8), send,
            slot=Slot(slot or f"{stage}{generation}"), depth=depth, stage=stage,
        )  # fmt: skip
        self.dispatcher.register(replica, self.now)
        self.dispatcher.credit(replica, depth, self.now)
        return replica

    def _compute_batch(self, replica: Replica, frame: Frame, generation: int, cost_s: float) -> None:
        rows: Any = frame.head["rows"]
        is_model = replica.stage == "model"
        mode = self.modes.get(generation, "ok") if is_model else "ok"
        if mode == "silent":
            return
        bad = None if mode == "ok" else {"kind": mode, "error": f"{mode} of {generation}"}
        self.replies.append((generation, sum(rows)))
        outputs: list[Any] = []
        if bad is None:
            outputs = [
                (
                    "y" if is_model else "x",
                    "FP32",
                    (sum(rows), 1),
                    [np.full((sum(rows), 1), generation, np.float32).tobytes()],
                )
            ]
        head = {"status": [bad] * len(rows), "compute_us": int(cost_s * 1e6), "credit": 1}
        reply = b"".join(
            bytes(piece) for piece in encode_tensors(Kind.REPLY, head, "outputs", outputs, number=frame.id)
        )
        (answer,) = FrameReader().feed(reply)
        self.at(self.now + cost_s, lambda: self._reply(replica, answer))

    def _reply(self, replica: Replica, answer: Frame) -> None:
        if answer.id in replica.batches:
            self.dispatcher.reply(replica, answer, self.now)

    # --- who asks ---

    def person(
        self, headers: Mapping[str, str] | None = None, *, version: int | None = None, probe: bool = False,
        patience_s: float = math.inf, width: int = 1, of: type[Person] = Person,
    ) -> Person:  # fmt: skip
        """Send a request."""
        person = of(headers or {}, world=self)
        asked = InferRequest(None, {"x": from_array("x", np.ones((1, width), np.float32))}, None, True, None)
        place = self.routes.find("digits", None if version is None else str(version))
        self.admission.submit(person, place, asked, self.now, patience_s, probe)
        return person

    def crowd(self, count: int, headers: Mapping[str, str] | None = None) -> list[Person]:
        """Send requests, and let time pass until they are answered."""
        people = [self.person(headers) for _ in range(count)]
        self.wait(1.0)
        return people

    def wait(self, seconds: float) -> None:
        """Let time pass, with the router's sweeps."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.run(SWEEP_S)
            self.dispatcher.sweep(self.now)
            self.routes.tick(self.now)


def bundle(generation: int) -> str:
    return f"sha256:{generation:064x}"
