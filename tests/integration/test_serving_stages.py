"""A bundle whose clients send and get text: router, agent, model and stages as processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.serving_site import DEVICE, ServingSite, generation
from support.stage_bundles import stage_bundle

from orchestrator.core.errors import ServingError

CLIENT = httpx.Client(timeout=20, limits=httpx.Limits(max_connections=32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[ServingSite]:
    site = ServingSite(folder / "site")
    try:
        site.start_router()
        site.start_agent()
        site.serve("numbers", generation(1, stage_bundle(folder / "one")))
        yield site
    finally:
        site.stop()


def ask(site: ServingSite, *texts: str, **parameters: Any) -> httpx.Response:
    rows: list[Any] = [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}]
    body = {"inputs": rows, "parameters": parameters}
    return CLIENT.post(f"{site.url}/v2/models/numbers/infer", json=body)


def pid_of(site: ServingSite, stage: str) -> int:
    return next(row["pid"] for row in site.admin.status()["replicas"] if row["stage"] == stage)


@pytest.mark.parametrize("binary", [True, False])
def test_text_goes_in_and_text_comes_out(site: ServingSite, binary: bool) -> None:
    with site.client() as client:
        answer = client.infer("numbers", {"text": np.array(["1 2 3 4", "one 0 0 0"], object)}, binary=binary)
        assert answer.outputs["words"].tolist() == [b"it is 20", b"it is 2"]
        assert answer.outputs["total"].tolist() == [20.0, 2.0]
        assert (answer.generation, answer.device) == (1, DEVICE), "the model's device, not the stages'"
        told = client.metadata("numbers")
    assert told["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert [(row["name"], row["datatype"]) for row in told["outputs"]] == [("total", "FP32"), ("words", "BYTES")]
    with pytest.raises(ServingError, match="the model takes \\['text'\\]"), site.client() as client:
        client.infer("numbers", {"x": np.ones((1, 4), np.float32)})


def test_tritons_clients_send_text(site: ServingSite) -> None:
    http = pytest.importorskip("tritonclient.http")
    grpc = pytest.importorskip("tritonclient.grpc")
    text = np.array(["1 1 1 1", "two two two 4"], object)
    for kind, url in ((http, site.url.removeprefix("http://")), (grpc, site.grpc)):
        client = kind.InferenceServerClient(url)
        asked = kind.InferInput("text", [2], "BYTES")
        asked.set_data_from_numpy(text)
        answer = client.infer("numbers", [asked], outputs=[kind.InferRequestedOutput("words")])
        assert answer.as_numpy("words").tolist() == [b"it is 8", b"it is 20"]
        assert answer.as_numpy("total") is None
        client.close()


def test_a_request_is_one_in_events_statistics_and_metrics(site: ServingSite) -> None:
    def figures() -> tuple[int, int]:
        found = httpx.get(f"{site.url}/v2/models/numbers/stats").json()["model_stats"][0]["inference_stats"]
        return found["success"]["count"], found["fail"]["count"]

    before, since = figures(), site.admin.events(0, 1000)["last"]
    assert [ask(site, "1 1 1 1").status_code, ask(site, "nonsense").status_code] == [200, 400]
    assert figures() == (before[0] + 1, before[1] + 1)
    events = site.admin.events(since, 100)["events"]
    assert [(row["status"], row["stage"]) for row in events] == [(200, "model"), (400, "model")]
    assert events[0]["total_us"] >= events[0]["queue_us"] + events[0]["compute_us"]
    row = site.admin.status()["generations"][0]
    assert (row["ready"], row["stages"]) == (1, {"preprocess": 1, "model": 1, "postprocess": 1})
    assert {(r["stage"], r["device"]) for r in site.admin.status()["replicas"]} == {
        ("preprocess", "cpu"), ("model", DEVICE), ("postprocess", "cpu"),
    }  # fmt: skip
    stages = {
        line.split('stage="')[1].partition('"')[0] for line in site.admin.metrics().splitlines() if "stage=" in line
    }
    assert stages == {"preprocess", "model", "postprocess"}


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("one two x 4", 400, "preprocess text:numbers refuses this input: ValueError"),
        ("key", 500, "preprocess text:numbers failed on this input: KeyError: 'absent'"),
        ("666 1 1 1", 500, "axis 1 must be 4"),
        ("-9 1 1 1", 400, "postprocess text:sums refuses this input: ValueError: a sum is negative"),
    ],
)
def test_a_failing_stage_fails_that_request_alone(site: ServingSite, text: str, status: int, says: str) -> None:
    texts = [text, *["1 1 1 1"] * 5] * 3
    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(lambda one: ask(site, one), texts))
    for sent, answer in zip(texts, answers, strict=True):
        assert answer.status_code == (status if sent == text else 200), answer.text
        assert sent != text or says in answer.json()["error"]


def test_deadlines_hold_over_the_chain(site: ServingSite) -> None:
    begun = time.monotonic()
    assert ask(site, "slow 1 1 1 1", timeout=100_000).status_code == 504
    assert time.monotonic() - begun < 0.9
    assert ask(site, "1 1 1 1").status_code == 200, "what comes after waits for the stage and no longer"


def test_a_stage_that_is_killed_loses_nothing(site: ServingSite) -> None:
    stage = "preprocess"
    done, answers = threading.Event(), list[int]()

    def load() -> None:
        while not done.is_set():
            answers.append(ask(site, "1 1 1 1").status_code)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(load) for _ in range(4)]
        site.wait(lambda: len(answers) > 20, 10, "answers")
        pid = pid_of(site, stage)
        os.kill(pid, signal.SIGKILL)
        site.wait(lambda: site.admin.status()["generations"][0]["ready"] == 0, 5, "the stage's end")
        site.admin.wait_ready("numbers", 1, 20)
        seen = len(answers)
        site.wait(lambda: len(answers) > seen + 20, 10, "more answers")
        done.set()
        for one in running:
            one.result()
    assert set(answers) == {200}
    assert pid_of(site, stage) != pid


def test_text_that_kills_the_stage_ends_as_that_requests_error(site: ServingSite) -> None:
    with ThreadPoolExecutor(8) as pool:
        bad = pool.submit(ask, site, "crash")
        rest = list(pool.map(lambda _: ask(site, "1 1 1 1").status_code, range(8)))
        assert bad.result().status_code == 503
        assert "two replicas ended" in bad.result().json()["error"]
    assert rest == [200] * 8
    site.admin.wait_ready("numbers", 1, 20)


def test_a_new_generation_takes_over_between_two_stages(site: ServingSite, folder: Path) -> None:
    """What is in preprocessing when its generation leaves the table is still computed by it."""
    with ThreadPoolExecutor(4) as pool:
        slow = pool.submit(ask, site, "slow 1 1 1 1")
        time.sleep(0.1)
        site.put(
            {"numbers": {"pool": "edge", "generations": [generation(2, stage_bundle(folder / "two", factor=3.0))]}}
        )
        assert slow.result().json()["outputs"][0]["data"] == [8.0], slow.result().text
    site.admin.wait_ready("numbers", 2, 20)
    assert ask(site, "1 1 1 1").json()["outputs"][0]["data"] == [12.0]
    site.wait(lambda: len(site.admin.status()["replicas"]) == 3, 10, "the old replicas' end")
