"""A digits execution made by hand: real files (a tiny ONNX model among them), no other room needed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from orchestrator.core.digests import sha256_bytes
from orchestrator.core.manifest import Manifest
from orchestrator.tracking.snapshot import (
    ArtifactRef,
    Dataset,
    Deployment,
    ExecutionSnapshot,
    GitState,
    MetricPoint,
    StepSnapshot,
)

T0 = 1_760_000_000_000
"""When the sample execution begins, Unix ms."""


class DictMapping:
    """The mapping of the ledger, in memory."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        return self.values.get(key)

    def put(self, key: str, value: str) -> None:
        self.values[key] = value


class FileMapping(DictMapping):
    """A mapping that survives kill -9: one JSON line per put."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        if path.exists():
            self.values = dict(json.loads(line) for line in path.read_text().splitlines() if line)

    def put(self, key: str, value: str) -> None:
        super().put(key, value)
        with self.path.open("a") as file:
            file.write(json.dumps([key, value]) + "\n")


def tiny_onnx() -> bytes:
    """y = x @ W, W = 4x3 of 0..11, float32, dynamic batch."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "W")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def artifact(store: Path, kind: str, files: dict[str, bytes], **fields: object) -> ArtifactRef:
    """Commit files as an artifact folder below `store`."""
    folder = store / "new"
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    manifest = Manifest.of_folder(folder, f"application/vnd.orchestrate.{kind}.v1")
    manifest.write(folder)
    home = store / manifest.digest.removeprefix("sha256:")
    if home.exists():
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    else:
        folder.rename(home)
        for path in home.rglob("*"):
            if path.is_file():
                path.chmod(0o444)  # as the store does
    return ArtifactRef(manifest.digest, kind, kind, home, manifest.size_bytes, **fields)  # type: ignore[arg-type]


def curve(count: int) -> tuple[MetricPoint, ...]:
    """A falling loss and two system metrics."""
    names = ("loss", "accuracy", "system/cpu_utilization_percentage")
    return tuple(
        MetricPoint(name, round(1 / (i + 1) + k, 6), i, T0 + 2000 + i * 10 + k)
        for i in range(count)
        for k, name in enumerate(names)
    )


def digits(store: Path, execution: str = "xsample0001", *, seed: bytes = b"", points: int = 12) -> ExecutionSnapshot:
    """An execution of eight steps that has succeeded and serves."""
    store.mkdir(parents=True, exist_ok=True)
    checkpoint = artifact(store, "checkpoint", {"model.safetensors": b"weights" + seed, "state.json": b'{"epoch": 12}'})
    sides = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 3]}],
    }
    facts = {"opset": 17, "exporter": "dynamo", **sides}
    onnx = artifact(
        store,
        "onnx",
        {"model.onnx": tiny_onnx(), "onnx.json": json.dumps(facts).encode(), "seed": seed},
        facts={"opset": 17},
    )
    report = artifact(store, "report", {"report.json": b'{"accuracy": 0.97}' + seed})
    bundle = artifact(store, "bundle", {"index.json": b"{}" + seed, "oci-layout": b"{}"})
    data = (Dataset("digits", "package:scikit-learn/digits", sha256_bytes(b"digits"), "training"),)
    steps = (
        _step(0, "preflight", "preflight", outputs=(report,)),
        _step(
            1,
            "train",
            "train",
            params={"epochs": "12", "lr": "0.002"},
            metrics=curve(points),
            summary={"accuracy": 0.97},
            sources={"train.py": sha256_bytes(b"train.py"), "model.py": sha256_bytes(b"model.py")},
            datasets=data,
            outputs=(checkpoint,),
        ),
        _step(
            2,
            "evaluate",
            "evaluate",
            inputs=(checkpoint,),
            summary={"accuracy": 0.965},
            outputs=(report,),
            datasets=(dataclasses.replace(data[0], context="evaluation"),),
        ),
        _step(3, "export", "export", inputs=(checkpoint,), outputs=(onnx,)),
        _step(
            4,
            "parity",
            "parity",
            inputs=(checkpoint, onnx),
            summary={"sqnr_db": 118.2, "cosine": 1.0},
            outputs=(report,),
        ),
        _step(5, "bundle", "bundle", inputs=(onnx, checkpoint, report), outputs=(bundle,)),
        _step(6, "register", "register", inputs=(bundle,)),
        _step(
            7,
            "deploy",
            "deploy",
            inputs=(bundle,),
            summary={"p99_ms": 3.2},
            deployment=Deployment(
                "digits", 1, "edge", bundle.digest, "http://127.0.0.1:8080/v2/models/digits", "cpu (rehearsal)"
            ),
        ),
    )
    return ExecutionSnapshot(
        id=execution,
        recipe="digits",
        recipe_sha256=sha256_bytes(b"recipe"),
        recipe_text="recipe: 1\nname: digits\n",
        plan={"steps": [step.name for step in steps]},
        state="succeeded",
        started_at_ms=T0,
        ended_at_ms=T0 + 20_000,
        user="tester",
        environment="local",
        steps=steps,
        git=GitState("0123456789abcdef0123456789abcdef01234567", True, "main", "ssh://git.example/digits.git"),
    )


def _step(position: int, name: str, kind: str, **fields: object) -> StepSnapshot:
    start = T0 + 1000 * (position + 1)
    return StepSnapshot(
        name=name,
        kind=kind,
        state="succeeded",
        started_at_ms=start,
        ended_at_ms=start + 900,
        reason="run: never done before",
        fingerprint=sha256_bytes(name.encode()),
        **fields,  # type: ignore[arg-type]
    )


def until(snapshot: ExecutionSnapshot, name: str, *, points: int = 0) -> ExecutionSnapshot:
    """The same execution while the step `name` runs, with its first `points` metric points."""
    steps: list[StepSnapshot] = []
    past = True
    for step in snapshot.steps:
        if step.name == name:
            past = False
            steps.append(
                dataclasses.replace(
                    step,
                    state="running",
                    ended_at_ms=None,
                    metrics=step.metrics[:points],
                    outputs=(),
                    summary={},
                    deployment=None,
                )
            )
        elif past:
            steps.append(step)
        else:
            steps.append(
                dataclasses.replace(
                    step,
                    state="pending",
                    started_at_ms=None,
                    ended_at_ms=None,
                    outputs=(),
                    summary={},
                    metrics=(),
                    deployment=None,
                )
            )
    return dataclasses.replace(snapshot, state="running", ended_at_ms=None, steps=tuple(steps))


def small(snapshot: ExecutionSnapshot) -> ExecutionSnapshot:
    """The same execution with train, export, register and deploy alone, where a test repeats it often."""
    steps = {step.name: step for step in snapshot.steps}
    onnx = steps["export"].outputs
    last = [dataclasses.replace(steps[name], inputs=onnx) for name in ("register", "deploy")]
    return dataclasses.replace(snapshot, steps=(steps["train"], steps["export"], *last))
