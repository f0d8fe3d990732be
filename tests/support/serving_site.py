"""A real router, agent and replicas on loopback, with tiny ONNX models made here."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from orchestrator.bundle.golden import write_golden
from orchestrator.bundle.oci import BundleParts, build_layout, unpack
from orchestrator.core.digests import Digest
from orchestrator.core.processes import end_processes
from orchestrator.serving.admin import RouterAdmin
from orchestrator.serving.client import OipClient

DEVICE = "cpu (rehearsal)"
ROOT = Path(__file__).parents[2]
SERVE = {"schema": 1, "preprocess": None, "postprocess": None, "inputs": None, "outputs": None, "max_queue_delay_ms": 0,
         "max_batch": None, "priority": None, "pinned": False, "share": 1.0, "isolation": "process", "files": []}  # fmt: skip


def write_bundle(
    folder: Path, model: onnx.ModelProto, golden: Mapping[str, np.ndarray], **serve: object
) -> tuple[Digest, Path]:
    """Build a bundle, unpack it as a serve site does, and return its digest and the unpacked folder.

    Args:
        serve: What `serve.json` says that differs from the defaults; nothing makes none.
    """
    onnx.checker.check_model(model)
    made = folder / "parts"
    (made / "onnx").mkdir(parents=True, exist_ok=True)
    (made / "onnx" / "model.onnx").write_bytes(model.SerializeToString())
    inputs = {name.removeprefix("input/"): array for name, array in golden.items() if name.startswith("input/")}
    outputs = {name.removeprefix("output/"): array for name, array in golden.items() if name.startswith("output/")}
    write_golden(made / "golden.safetensors", inputs, outputs)
    extra = {"serve.json": made / "serve.json"} if serve else {}
    for path in extra.values():
        path.write_text(json.dumps({**SERVE, **serve}))
    parts = BundleParts(folder.name, made / "onnx", made / "golden.safetensors", {"name": folder.name}, extra=extra)
    digest = build_layout(parts, folder / "layout")
    return Digest(digest), unpack(folder / "layout", folder / "bundles", expected=digest)


def _model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any] | None = None
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def scale_bundle(
    folder: Path, factor: float, batch: str | int = "batch", wrong_golden: bool = False, **serve: object
) -> tuple[Digest, Path]:
    """y = x * factor, x: [batch, 4] float32."""
    model = _model(
        [helper.make_node("Mul", ["x", "k"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor("k", TensorProto.FLOAT, [], [factor])],
    )
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    return write_bundle(folder, model, {"input/x": x, "output/y": x * (factor + (1 if wrong_golden else 0))}, **serve)


def endless_bundle(folder: Path, **serve: object) -> tuple[Digest, Path]:
    """y = x, after as many rounds of a loop as the largest number of x says; x: [batch, 4] float32."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["state"], ["next"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [4096]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [4096]),
        ],
    )
    model = _model(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["rounds"], to=TensorProto.INT64),
            helper.make_node("ConstantOfShape", ["wide"], ["start"]),
            helper.make_node("Loop", ["rounds", "yes", "start"], ["end"], body=body),
            helper.make_node("ReduceMax", ["end"], ["nothing"], keepdims=0),
            helper.make_node("Mul", ["nothing", "zero"], ["none"]),
            helper.make_node("Add", ["x", "none"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor("wide", TensorProto.INT64, [1], [4096]),
            helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        ],
    )
    x = np.ones((3, 4), dtype=np.float32)
    return write_bundle(folder, model, {"input/x": x, "output/y": x}, **serve)


def slow_bundle(folder: Path, size: int = 420) -> tuple[Digest, Path]:
    """y = x + 0 * (a chain of matrix products): a few milliseconds per batch; x: [batch, 4] float32."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((size, size)) / size).astype(np.float32)
    nodes = [helper.make_node("ConstantOfShape", ["wide"], ["start"])]
    last = "start"
    for i in range(8):
        nodes.append(helper.make_node("MatMul", [last, "w"], [f"m{i}"]))
        last = f"m{i}"
    nodes += [
        helper.make_node("ReduceSum", [last], ["s"], keepdims=0),
        helper.make_node("Mul", ["s", "zero"], ["nothing"]),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean", "zero"], ["none"]),
        helper.make_node("Add", ["x", "none"], ["x2"]),
        helper.make_node("Add", ["x2", "nothing"], ["y"]),
    ]
    model = _model(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor("wide", TensorProto.INT64, [2], [size, size]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("w", TensorProto.FLOAT, [size, size], weights.tobytes(), raw=True),
        ],
    )
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    return write_bundle(folder, model, {"input/x": x, "output/y": x})


def gather_bundle(folder: Path) -> tuple[Digest, Path]:
    """picked = row[index]; an index beyond 3 is refused by the model. index: [batch] int64."""
    model = _model(
        [helper.make_node("Gather", ["row", "index"], ["picked"], axis=0)],
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("picked", TensorProto.FLOAT, ["batch"])],
        [helper.make_tensor("row", TensorProto.FLOAT, [4], [0.0, 10.0, 20.0, 30.0])],
    )
    index = np.array([0, 3, 1], dtype=np.int64)
    return write_bundle(folder, model, {"input/index": index, "output/picked": (index * 10).astype(np.float32)})


def identity_bundle(folder: Path) -> tuple[Digest, Path]:
    """Identity over a bool, a uint64, an int8 and a float16 input, each [batch, n]: n is dynamic and shared."""
    kinds = {
        "flag": (TensorProto.BOOL, np.bool_),
        "u64": (TensorProto.UINT64, np.uint64),
        "i8": (TensorProto.INT8, np.int8),
        "half": (TensorProto.FLOAT16, np.float16),
    }
    nodes, inputs, outputs, golden = [], [], [], {}
    for name, (kind, dtype) in kinds.items():
        nodes.append(helper.make_node("Identity", [name], [f"{name}_out"]))
        inputs.append(helper.make_tensor_value_info(name, kind, ["batch", "n"]))
        outputs.append(helper.make_tensor_value_info(f"{name}_out", kind, ["batch", "n"]))
        golden[f"input/{name}"] = golden[f"output/{name}_out"] = np.array([[0, 1], [1, 1]], dtype=dtype)
    return write_bundle(folder, _model(nodes, inputs, outputs), golden)


def generation(
    number: int, bundle: tuple[Digest, Path], weight: int = 100, state: str = "live", device: str = DEVICE
) -> dict[str, object]:
    """Return a generation's row of the routing table."""
    return {
        "generation": number,
        "bundle": bundle[0],
        "path": str(bundle[1]),
        "runtime": "onnx-cpu",
        "weight": weight,
        "state": state,
        "device": device,
    }


class ServingSite:
    """Router and agents as child processes; `python` and `env` may be those of another environment."""

    def __init__(
        self,
        folder: Path,
        *,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
        routers: int = 1,
        **settings: object,
    ) -> None:
        self.folder = folder
        self.short = Path(tempfile.mkdtemp(prefix="orc-"))
        self.python = python
        self.env = dict(env if env is not None else os.environ)
        self.env["PYTHONPATH"] = str(ROOT)
        self.version = 0
        self.settings = settings
        self.router: subprocess.Popen[bytes] | None = None
        self.followers: dict[int, subprocess.Popen[bytes]] = {}
        self.routers = routers
        self.agents: list[subprocess.Popen[bytes]] = []
        self.admin = RouterAdmin(self.short / "admin.sock")

    def start_router(self) -> None:
        config = {
            "host": "127.0.0.1",
            "port": 0,
            "admin": str(self.short / "admin.sock"),
            "link": str(self.short / "link.sock"),
            "state": str(self.folder / "router"),
            "parent_pid": os.getpid(),
            **self.settings,
        }
        if self.routers > 1:
            config["peers"] = [str(self.short / f"admin-{number}.sock") for number in range(1, self.routers)]
        state = self.folder / "router" / "router.json"
        state.unlink(missing_ok=True)
        self.router = self._spawn("router.process", config, "router")
        self.wait(lambda: state.exists() or self._dead(self.router), 15, "router")
        told = json.loads(state.read_text())
        self.url, self.grpc = told["url"], told["grpc"]
        for number in range(1, self.routers):
            if number not in self.followers:
                self.start_follower(number)

    def start_follower(self, number: int) -> None:
        """Start another router on the ports of the first."""
        config = {
            "host": "127.0.0.1",
            "admin": str(self.short / f"admin-{number}.sock"),
            "link": str(self.short / f"link-{number}.sock"),
            "state": str(self.folder / f"router-{number}"),
            "parent_pid": os.getpid(),
            **self.settings,
            "router": number,
            "port": int(self.url.rpartition(":")[2]),
            "grpc_port": int(self.grpc.rpartition(":")[2] or -1),
            "lead_table": str(self.folder / "router" / "table.json"),
        }
        state = self.folder / f"router-{number}" / "router.json"
        state.unlink(missing_ok=True)
        process = self.followers[number] = self._spawn("router.process", config, f"router-{number}")
        self.wait(lambda: state.exists() or self._dead(process, f"router-{number}.log"), 15, "router")

    def start_agent(
        self, name: str = "agent", slots: int = 1, pool: str = "edge", device: str = DEVICE, **more: object
    ) -> subprocess.Popen[bytes]:
        config = {
            "pool": pool,
            "link": str(self.short / "link.sock"),
            "state": str(self.folder / "agents" / pool),
            "device": device,
            "slots": slots,
            "parent_pid": os.getpid(),
            "links": [str(self.short / f"link-{number}.sock") for number in range(1, self.routers)],
            **more,
        }
        agent = self._spawn("agent.process", config, name)
        self.agents.append(agent)
        return agent

    def _spawn(self, module: str, config: dict[str, object], name: str) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(config))
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [self.python, "-m", f"orchestrator.serving.{module}", "--config", str(path)],
                stdout=log,
                stderr=log,
                env=self.env,
                cwd=self.folder,
            )

    def _dead(self, process: subprocess.Popen[bytes] | None, log: str = "router.log") -> bool:
        if process is not None and process.poll() is not None:
            raise AssertionError((self.folder / log).read_text()[-3000:])
        return False

    def put(self, endpoints: dict[str, object]) -> int:
        self.version += 1
        return self.admin.put_table({"version": self.version, "endpoints": endpoints})

    def serve(self, endpoint: str, *generations: dict[str, object], pool: str = "edge", timeout_s: float = 20) -> None:
        """Add or change one endpoint, and wait until each of its generations is ready."""
        table = self.admin.table().to_json()
        endpoints = dict(table["endpoints"])  # type: ignore[arg-type]
        endpoints[endpoint] = {"pool": pool, "generations": list(generations)}
        self.version = max(self.version, int(table["version"]))  # type: ignore[arg-type]
        self.put(endpoints)
        for row in generations:
            self.admin.wait_ready(endpoint, int(row["generation"]), timeout_s)  # type: ignore[arg-type]

    def client(self) -> OipClient:
        return OipClient(self.url, timeout_s=20)

    def replica_pids(self, endpoint: str) -> list[int]:
        return [row["pid"] for row in self.admin.status()["replicas"] if row["endpoint"] == endpoint]

    @staticmethod
    def wait(condition: Callable[[], object], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {timeout_s} s")
            time.sleep(0.02)

    def stop(self) -> None:
        self.admin.close()
        processes = [*self.agents, *self.followers.values(), *([self.router] if self.router else [])]
        end_processes([process.pid for process in processes if process.poll() is None], grace_s=8)
        for process in processes:
            process.wait(5)
        for socket in self.short.glob("*"):
            socket.unlink()
        self.short.rmdir()


class Load:
    """Closed-loop clients, each with its own connection, from start to `stop()`; every answer is kept.

    Attributes:
        answers: (generation, the factor that the answer shows) of every success.
        failures: (status, body) of every other answer, and (0, text) of broken connections.
    """

    def __init__(self, url: str, endpoint: str, clients: int = 4) -> None:
        self.answers: list[tuple[int, float]] = []
        self.failures: list[tuple[int, str]] = []
        self._address = url.removeprefix("http://")
        self._path = f"/v2/models/{endpoint}/infer"
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=20)
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]})
        while not self._stopping.is_set():
            try:
                connection.request("POST", self._path, body, {"content-type": "application/json"})
                response = connection.getresponse()
                text = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append((0, repr(error)))
                connection.close()
                time.sleep(0.02)
                continue
            if response.status == 200:
                answer = json.loads(text)
                self.answers.append((int(answer["model_version"]), answer["outputs"][0]["data"][0]))
            else:
                self.failures.append((response.status, text.decode()))

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)
