"""An endpoint whose second generation is tried at real routers: generation n multiplies by n, and clients check that."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import tritonclient.grpc as triton_grpc
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from support.serving_site import ServingSite, generation, write_bundle

JSON = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}
POISON = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 99]}]}
Bundles = dict[int, Any]
"""By generation."""


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


class Crowd:
    """Clients of the public port that ask all the time; `wrong` is what was not as it should be."""

    def __init__(self, site: ServingSite, body: Any = JSON, clients: int = 4, *, grpc: bool = False) -> None:
        self.seen: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._site, self._body = site, body
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask_grpc if grpc else self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        with httpx.Client(base_url=self._site.url, timeout=20) as client:
            while not self._stop.is_set():
                try:
                    self.seen[ask(client, body=self._body)] += 1
                except (AssertionError, httpx.HTTPError) as error:
                    self.wrong.append(repr(error))

    def _ask_grpc(self) -> None:
        with triton_grpc.InferenceServerClient(self._site.grpc) as client:
            while not self._stop.is_set():
                try:
                    self.seen[ask_grpc(client, {"x-user": f"u{self.seen.total() % 50}"})] += 1
                except (AssertionError, InferenceServerException) as error:
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
