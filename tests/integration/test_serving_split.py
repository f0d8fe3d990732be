"""Two real routers that try a generation: both deal alike by REST and gRPC, and whatever the canary does, no client notices."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
from onnx import TensorProto, helper

from tests.support.serving_site import ServingSite, generation, scale_bundle, write_bundle

JSON = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}
POISON = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 99]}]}
Bundles = dict[int, Any]


def picky_bundle(folder: Path, factor: float) -> Any:
    """y = x * factor; an x over 19 is beyond a table in the model, which then refuses it."""
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["row", "i"], ["nothing"]),
        helper.make_node("Mul", ["x", "k"], ["scaled"]),
        helper.make_node("Add", ["scaled", "nothing"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    constants = [
        helper.make_tensor("row", TensorProto.FLOAT, [20], [0.0] * 20),
        helper.make_tensor("k", TensorProto.FLOAT, [], [factor]),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    return write_bundle(folder, model, {"input/x": x, "output/y": x * factor})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("bundles")
    return {1: scale_bundle(folder / "one", 1.0), 2: picky_bundle(folder / "two", 2.0)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, bundles: Bundles) -> Generator[ServingSite]:
    site = ServingSite(tmp_path_factory.mktemp("split") / "site", routers=2)
    try:
        site.start_router()
        site.start_agent()
        site.serve("scale", generation(1, bundles[1]), generation(2, bundles[2], weight=0, state="staged"))
        yield site
    finally:
        site.stop()


def split(site: ServingSite, bundles: Bundles, weight: int, **more: object) -> None:
    """Give the canary this weight."""
    rows = [generation(1, bundles[1], 100 - weight), generation(2, bundles[2], weight, "staged")]
    site.put({"scale": {"pool": "edge", "generations": rows, "split": {"stable": 1, "canary": 2, **more}}})


def ask(client: httpx.Client, headers: Mapping[str, str] | None = None, body: Any = JSON, version: int = 0) -> int:
    """Ask by REST; returns the generation, after a look at the answer."""
    path = f"/v2/models/scale/versions/{version}/infer" if version else "/v2/models/scale/infer"
    answer = client.post(path, json=body, headers=dict(headers or {}))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    number = int(found["model_version"])
    assert found["outputs"][0]["data"][0] == number, "each answer is its generation's"
    return number


def ask_grpc(client: triton_grpc.InferenceServerClient, headers: Mapping[str, str]) -> int:
    given = triton_grpc.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(np.ones((1, 4), np.float32))
    answer = client.infer("scale", [given], headers=dict(headers))
    number = int(answer.get_response().model_version)
    assert answer.as_numpy("y")[0, 0] == number
    return number


def routers_of(site: ServingSite) -> list[httpx.Client]:
    """Return a client of each router: its admin socket has the public paths too."""
    sockets = ("admin.sock", "admin-1.sock")
    return [
        httpx.Client(transport=httpx.HTTPTransport(uds=str(site.short / name)), base_url="http://router", timeout=20)
        for name in sockets
    ]


def test_both_routers_and_both_protocols_deal_alike(site: ServingSite, bundles: Bundles) -> None:
    routes = [
        {"name": "x-team", "how": "exact", "value": "qa"},
        {"name": "x-build", "how": "prefix", "value": "next-"},
        {"name": "x-id", "how": "regex", "value": "[0-9]{3}"},
    ]
    one, two = routers_of(site)
    before = set[str]()
    with one, two, triton_grpc.InferenceServerClient(site.grpc) as grpc:
        for weight in (0, 30, 60):
            split(site, bundles, weight, sticky="x-user", headers=routes)
            found = {name: ask(one, {"x-user": name}) for name in (f"u{i}" for i in range(40))}
            assert found == {name: ask(two, {"x-user": name}) for name in found}
            assert found == {name: ask_grpc(grpc, {"x-user": name}) for name in found}
            users = {name for name, number in found.items() if number == 2}
            assert before <= users
            before = users
        assert 0 < len(before) < 40
        split(site, bundles, 0, headers=routes)
        for headers in ({"x-team": "qa"}, {"x-build": "next-7"}, {"x-id": "123"}):
            assert [ask(one, headers), ask(two, headers), ask_grpc(grpc, headers)] == [2, 2, 2]
        for headers in ({"x-team": "qa2"}, {"x-build": "nex"}, {"x-id": "1234"}, {"team": "qa"}):
            assert [ask(one, headers), ask(two, headers), ask_grpc(grpc, headers)] == [1, 1, 1]
        assert ask(one, {"x-team": "qa"}, version=1) == 1
        split(site, bundles, 10)
        for client in (one, two):
            assert Counter(ask(client) for _ in range(200)) == {1: 180, 2: 20}


class Crowd:
    """Clients of the public port that ask all the time; `wrong` is what was not as it should be."""

    def __init__(self, site: ServingSite, body: Any = JSON, clients: int = 4) -> None:
        self.seen: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._site, self._body = site, body
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        with httpx.Client(base_url=self._site.url, timeout=20) as client:
            while not self._stop.is_set():
                try:
                    self.seen[ask(client, body=self._body)] += 1
                except (AssertionError, httpx.HTTPError) as error:
                    self.wrong.append(repr(error))

    def more(self, count: int = 100) -> None:
        """Wait for so many answers more."""
        target = self.seen.total() + count
        ServingSite.wait(lambda: self.seen.total() >= target or self.wrong, 30, "answers")

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


def test_weights_go_up_and_down_under_load(site: ServingSite, bundles: Bundles) -> None:
    with Crowd(site) as crowd:
        for weight in (0, 10, 50, 100):
            split(site, bundles, weight, mirror=20)
            crowd.more()
        last = crowd.seen[1]
        crowd.more()
        assert crowd.seen[1] - last <= 4, "at 100 percent only what was on its way"
        split(site, bundles, 0, mirror=20)
        crowd.more()
    assert crowd.wrong == []
    assert crowd.seen[1] > 100 < crowd.seen[2]


def test_what_the_canary_alone_cannot_do_costs_nobody_an_answer(site: ServingSite, bundles: Bundles) -> None:
    split(site, bundles, 50)
    one, two = routers_of(site)
    with one, two:
        for client in (one, two):
            for body in (POISON, JSON):
                answers = [client.post("/v2/models/scale/infer", json=body) for _ in range(20)]
                assert {answer.status_code for answer in answers} == {200}
            assert client.post("/v2/models/scale/versions/2/infer", json=POISON).status_code == 400
            assert client.post("/v2/models/scale/infer", json={"inputs": []}).status_code == 400


def test_a_canary_that_is_killed_under_load(site: ServingSite, bundles: Bundles) -> None:
    split(site, bundles, 50, sticky="x-user")
    rows = site.admin.status()["replicas"]
    (pid,) = [row["pid"] for row in rows if row["generations"] == [2]]
    with Crowd(site) as crowd:
        crowd.more()
        os.kill(pid, signal.SIGKILL)
        crowd.more()
        site.admin.wait_ready("scale", 2, 20)
        before = crowd.seen[2]
        ServingSite.wait(lambda: crowd.seen[2] > before + 20 or crowd.wrong, 20, "the canary answers again")
        split(site, bundles, 0)
        crowd.more()
    assert crowd.wrong == []
