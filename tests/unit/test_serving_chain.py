"""A request through its stages, without processes: what each stage gets, what the client sees, what is kept and let go."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orchestrator.serving.dispatch.dispatcher import Dispatcher
from orchestrator.serving.dispatch.lanes import Lane, Replica, Request
from orchestrator.serving.errors import RequestError
from orchestrator.serving.observe.record import Recorder
from orchestrator.serving.protocol.oip import InferRequest
from orchestrator.serving.protocol.signature import Signature, fit
from orchestrator.serving.protocol.tensors import TensorSpec, from_array
from orchestrator.serving.router.chain import Chain, client_signature
from orchestrator.serving.table import Generation

BUNDLE = "sha256:" + "a" * 64
TEXT = TensorSpec("text", "BYTES", ("batch",))
X, Y = TensorSpec("x", "FP32", ("batch", 2)), TensorSpec("y", "FP32", ("batch",))
LABEL = TensorSpec("label", "BYTES", ("batch",))
SIGNATURES = {
    "preprocess": Signature((TEXT,), (X,), 32),
    "model": Signature((X,), (Y,), 4),
    "postprocess": Signature((Y,), (LABEL,), 32),
}


class Client:
    def __init__(self) -> None:
        self.done = self.gone = False
        self.answers: list[Any] = []

    def answer(self, request: Request, outputs: Any) -> None:
        self.done = True
        self.answers.append((request.lane.version, request.request_id, [tensor.array().tolist() for tensor in outputs]))

    def refuse(self, error: RequestError, lane: Lane | None) -> None:
        self.done = True
        self.answers.append((error.status, error.message, lane and lane.stage))


class Bench:
    """A generation with three stages; `run` plays the replica of one, a batch at a time."""

    def __init__(self, queue_limit: int = 8) -> None:
        self.recorder = Recorder()
        self.turn: list[Callable[[], None]] = []
        self.dispatcher = Dispatcher(
            self.recorder, queue_limit=queue_limit, replica_grace_s=5, soon=self.turn.append, later=lambda *_: None
        )
        generation = Generation(3, BUNDLE, "/nowhere", "onnx-cpu", 100, "live", "cpu (rehearsal)")
        now = time.monotonic()
        self.model = Lane("e", generation, now, chained=True)
        self.model.before = Lane("e", generation, now, stage="preprocess", chained=True)
        self.model.after = Lane("e", generation, now, stage="postprocess", chained=True)
        self.replicas: dict[str, Replica] = {}
        for lane in self.model.stages:
            self.dispatcher.lanes.append(lane)
            device = "cpu" if lane.stage != "model" else "cpu (rehearsal)"
            replica = Replica(
                lane.stage, 1, "e", BUNDLE, "r", device, SIGNATURES[lane.stage], lambda _: None, stage=lane.stage
            )
            self.replicas[lane.stage] = replica
            self.dispatcher.register(replica, now)

    def ask(self, *texts: str, client: Client | None = None) -> Client:
        client = client or Client()
        asked = InferRequest("id-1", {"text": from_array("text", np.array(texts, object))}, None, True, None)
        fitted, now = fit(asked, client_signature(self.model)), time.monotonic()
        request = Request(client, self.model, fitted, asked.id, now, now + 9, False)
        Chain(client, request, self.dispatcher).start()
        return client

    def run(self, stage: str, compute: Callable[[Any], Any] | RequestError) -> None:
        """Answer everything that waits for the stage."""
        for call in self.turn:
            call()
        self.turn.clear()
        replica = self.replicas[stage]
        self.dispatcher.credit(replica, 1, time.monotonic())
        (batch,) = replica.batches.values()
        replica.batches.clear()
        for request in batch.requests:
            request.lane.in_flight -= 1
            if isinstance(compute, RequestError):
                self.dispatcher._fail(request, compute, time.monotonic())
            else:
                name = SIGNATURES[stage].outputs[0].name
                found = [from_array(name, compute(request.fitted.inputs[0].array()))]
                self.dispatcher._answer(request, found, stage, time.monotonic(), 1, 10)

    @property
    def expected(self) -> list[int]:
        return [lane.expected for lane in self.model.stages]


def numbers(texts: Any) -> Any:
    return np.array([[float(text), 1.0] for text in texts.tolist()], np.float32)


def sums(x: Any) -> Any:
    return x.sum(1)


def labels(y: Any) -> Any:
    return np.array([f"{value:g}" for value in y], object)


def test_each_stage_gets_what_the_one_before_gave() -> None:
    bench = Bench()
    signature = client_signature(bench.model)
    assert (signature.inputs, signature.outputs, signature.max_batch) == ((TEXT,), (LABEL,), 4), (
        "the least that batches"
    )
    client = bench.ask("4", "5")
    assert bench.expected == [0, 1, 1], "later stages are not let go while a request is on its way to them"
    bench.run("preprocess", numbers)
    assert bench.expected == [0, 0, 1]
    bench.run("model", sums)
    bench.run("postprocess", labels)
    assert client.answers == [("3", "id-1", [[b"5", b"6"]])]
    assert bench.expected == [0, 0, 0]
    (event,) = bench.recorder.events.read(0, 10)["events"]
    assert (event["status"], event["replica"], event["compute_us"], event["stage"]) == (200, "model", 30, "model")
    statistics = bench.model.statistics
    assert (statistics.succeeded, statistics.failed, statistics.rows) == (1, 0, 2)


@pytest.mark.parametrize("stage", ["preprocess", "model", "postprocess"])
def test_a_stage_that_refuses_ends_the_request(stage: str) -> None:
    bench = Bench()
    client = bench.ask("4")
    for name, compute in (("preprocess", numbers), ("model", sums), ("postprocess", labels)):
        if name == stage:
            bench.run(name, RequestError("no", status=400, kind="rejected"))
            break
        bench.run(name, compute)
    assert client.answers == [(400, "no", "model")]
    assert bench.expected == [0, 0, 0]
    assert not any(lane.busy for lane in bench.model.stages)
    assert [event["status"] for event in bench.recorder.events.read(0, 10)["events"]] == [400]
    assert (bench.model.statistics.succeeded, bench.model.statistics.failed) == (0, 1)


def test_what_does_not_fit_the_model_is_the_stages_fault() -> None:
    bench = Bench()
    client = bench.ask("4")
    bench.run("preprocess", lambda texts: np.zeros((len(texts), 3), np.float32))
    assert client.answers[0][0] == 500
    assert "what preprocess gave does not fit model: input 'x' has shape [1, 3]" in client.answers[0][1]
    assert bench.expected == [0, 0, 0]


def test_a_full_queue_ahead_is_told_before_anything_is_computed() -> None:
    bench = Bench(queue_limit=2)
    bench.ask("1")
    bench.run("preprocess", numbers)
    bench.ask("2")
    with pytest.raises(RequestError, match="too many requests are waiting"):
        bench.ask("3")
    assert bench.expected == [0, 1, 2]


def test_a_client_that_has_gone_is_not_computed_for() -> None:
    bench = Bench()
    client = bench.ask("1")
    bench.run("preprocess", numbers)
    client.gone = True
    bench.dispatcher.sweep(time.monotonic())
    assert client.answers[0][0] == 499
    assert bench.expected == [0, 0, 0]
    assert [event["status"] for event in bench.recorder.events.read(0, 10)["events"]] == [499]
