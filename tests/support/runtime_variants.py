"""One small model as every runtime loads it: y = x * n, m = n + 1; x [batch, 4] float32, n [batch, 1] int64."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from orchestrator.ascend.mindspore_lite import MindSporeLite
from orchestrator.bundle.variant import Variant, write_variant
from orchestrator.serving.protocol.tensors import Tensor, from_array
from support.fake_acl import write_om

BUNDLE = "sha256:" + "b" * 64
SOC = "Ascend310P3"
GEARS = (1, 4, 8)
_INPUTS: tuple[tuple[str, str, tuple[str | int, ...]], ...] = (
    ("x", "float32", ("batch", 4)),
    ("n", "int64", ("batch", 1)),
)
_OUTPUTS: tuple[tuple[str, str, tuple[str | int, ...]], ...] = (
    ("y", "float32", ("batch", 4)),
    ("m", "int64", ("batch", 1)),
)


def model(*, width: int | str = 4, batch: int | str = "batch") -> onnx.ModelProto:
    """Return the graph."""
    nodes = [
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
        helper.make_node("Add", ["n", "one"], ["m"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, width]) for name in "xy")
    n, m = (helper.make_tensor_value_info(name, TensorProto.INT64, [batch, 1]) for name in "nm")
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "g", [x, n], [y, m], [one])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def batch(rows: int, width: int = 4, seed: int = 0) -> list[Tensor]:
    """Return inputs of so many rows."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width)).astype(np.float32)
    n = rng.integers(-5, 5, (rows, 1))
    return [from_array("x", x), from_array("n", n)]


def expected(inputs: Sequence[Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Return what the model must give."""
    x, n = (tensor.array() for tensor in inputs)
    return {"y": x * n.astype(np.float32), "m": n + 1}  # type: ignore[operator]


def golden() -> dict[str, np.ndarray[Any, Any]]:
    """Return golden samples for `write_bundle`."""
    inputs = batch(3)
    found = {f"input/{tensor.name}": tensor.array() for tensor in inputs}
    return found | {f"output/{name}": array for name, array in expected(inputs).items()}


def variant_of(folder: Path, runtime: Any, *, fmt: str, gears: Sequence[Mapping[str, int]], facts: Mapping[str, Any],
               bundle: str = BUNDLE, width: int | str = 4, compiled: bool = True, soc: str | None = SOC) -> Variant:  # fmt: skip
    """Describe the files in `folder`."""

    def rows(specs: Any) -> list[dict[str, Any]]:
        return [{"name": n, "dtype": d, "shape": [width if s == 4 else s for s in shape]} for n, d, shape in specs]

    return write_variant(
        Variant(
            folder, bundle, "edge", fmt, soc, "fp16", runtime, {"name": "fake", "version": "1"}, not compiled, compiled,
            None if compiled else "a test", rows(_INPUTS), rows(_OUTPUTS), tuple(gears), dict(facts),
        )
    )  # fmt: skip


def om_variant(folder: Path, *, bundle: str = BUNDLE, kind: str = "batches", **more: Any) -> Variant:
    """Make a variant of runtime om: kind `batches`, `dims` (batch and width), `fixed` (batch 4) or `ranges`."""
    folder.mkdir(parents=True)
    top, width, first = {"batches": (8, 4, -1), "dims": (4, 6, -1), "fixed": (4, 4, 4), "ranges": (8, 4, -1)}[kind]
    across = -1 if kind == "dims" else 4
    floats = {"dtype": "float32", "dims": [first, across], "largest": [top, width]}
    ints = {"dtype": "int64", "dims": [first, 1], "largest": [top, 1]}
    gears: list[dict[str, int]] = [{}]
    shapes: dict[str, Any] = {"gears": [{}], "fixed": {}, "ranges": {}}
    head: dict[str, Any] = {"soc": SOC, **more}
    if kind == "batches":
        gears, head["batches"] = [{"batch": size} for size in GEARS], list(GEARS)
    elif kind == "dims":
        gears = [{"batch": size, "width": width} for size in (1, 4) for width in (4, 6)]
        head["dims"] = [[g["batch"], g["width"], g["batch"]] for g in gears]
    elif kind == "fixed":
        shapes["fixed"] = {"batch": 4}
    else:
        shapes["ranges"], head["ranges"] = {"batch": [1, 8]}, True
    write_om(
        folder / "model.om",
        model(width="width" if kind == "dims" else 4).SerializeToString(),
        [{"name": "x", **floats}, {"name": "n", **ints}],
        [{"name": "PartitionedCall_0:0:y", **floats}, {"name": "PartitionedCall_1:0:m", **ints}],
        **head,
    )
    named: int | str = "width" if kind == "dims" else 4
    return variant_of(folder, "om", fmt="om", gears=gears, facts={"shapes": shapes}, bundle=bundle, width=named)


def mindir_variant(folder: Path, python: Path, *, bundle: str = BUNDLE) -> Variant:
    """Convert the graph with the real MindSpore Lite to its CPU form."""
    folder.mkdir(parents=True)
    graph = folder.parent / "graph.onnx"
    graph.write_bytes(model().SerializeToString())
    MindSporeLite(python).convert(graph, folder / "model.mindir", optimize="general", timeout_s=60)
    facts = {"mindir": {"form": "general"}, "shapes": {"gears": [], "fixed": {}, "ranges": {}}}
    gears = [{"batch": size} for size in GEARS]
    return variant_of(folder, "mindir", fmt="mindir", gears=gears, facts=facts, bundle=bundle, compiled=False)


def cann_variant(folder: Path, *, bundle: str = BUNDLE) -> Variant:
    """Lay the graph out as the compile step for the CANN provider does."""
    (folder / "cache").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model().SerializeToString())
    (folder / "cache" / "g_1_0.om").write_bytes(b"compiled")
    facts = {"provider_options": {"precision_mode": "force_fp16", "device_id": "3"}, "shapes": {}}
    gears = [{"batch": size} for size in GEARS]
    return variant_of(folder, "onnx-cann", fmt="onnx", gears=gears, facts=facts, bundle=bundle)


_NETWORK = """
import torch


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, n):
        if x.shape[0] > 1 and bool((n == 99).any()):
            raise ValueError("this is not for me")
        return x * n.to(x.dtype) * self.one, n + 1


def build():
    return Network()
"""


def torch_variant(folder: Path, *, bundle: str = BUNDLE, factory: str = "network:build", **how: Any) -> Variant:
    """Write a package as the compile step does."""
    (folder / "source").mkdir(parents=True)
    (folder / "source" / "network.py").write_text(_NETWORK)
    save_file({"one": np.ones((), np.float32)}, folder / "model.safetensors")
    rows = [{name: {"dtype": d, "shape": list(shape)} for name, d, shape in specs} for specs in (_INPUTS, _OUTPUTS)]
    (folder / "build.json").write_text(
        json.dumps(
            {
                "schema": 1, "factory": factory, "source": "source", "files": ["network.py"], "weights": "model.safetensors",
                "inputs": rows[0], "outputs": rows[1], "device": "any", "soc": None, "precision": "fp32",
                "module_dtype": "float32", "autocast": "", "allow_hf32": {}, "jit_compile": None,
                "environment": {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}, **how,
            }
        )
    )  # fmt: skip
    return variant_of(folder, "torch", fmt="torch", gears=[{}], facts={"package": "."}, bundle=bundle, soc=None)
