"""Hostile and damaged ONNX files, one per attack. `ATTACKS` maps the attack's name to what writes it into a folder.

Beside every model stand a weights file that is fine (`w.bin`, 64 bytes) and, one folder up, what must never be opened: the
canary, a named pipe. Opening it for reading hangs, and while somebody does, a writer can open it too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CANARY = "canary"
ATTACKS: dict[str, Callable[[Path], bytes]] = {}

Build = Callable[[Path], "bytes | onnx.ModelProto"]


def attack(build: Build) -> Build:
    """Register a builder under its function's name."""

    def whole(folder: Path) -> bytes:
        made = build(folder)
        return made if isinstance(made, bytes) else made.SerializeToString()

    ATTACKS[build.__name__] = whole
    return build


def write(name: str, folder: Path) -> Path:
    """Write one hostile model with its surroundings; returns its path, `folder/model/model.onnx`."""
    inner = folder / "model"
    inner.mkdir(parents=True)
    (inner / "w.bin").write_bytes(np.eye(4, dtype=np.float32).tobytes())
    os.mkfifo(folder / CANARY)
    data = ATTACKS[name](inner)
    path = inner / "model.onnx"
    if not path.exists() and not path.is_symlink():
        path.write_bytes(data)
    return path


def canary_is_being_read(folder: Path) -> bool:
    """Tell whether anybody has the canary open for reading right now."""
    try:
        os.close(os.open(folder / CANARY, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise
    return True


def graph_of(nodes: list[Any], weights: list[Any] = [], shape: tuple[int | str, ...] = ("n", 4)) -> onnx.ModelProto:  # noqa: B006
    """Return a model from `x` to `y` of these nodes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(shape))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def good() -> onnx.ModelProto:
    """Return a model that is fine."""
    return graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )


def outside(location: str, **more: str) -> TensorProto:
    """Return tensor `w` whose bytes lie at `location`."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def located(location: str, **more: str) -> onnx.ModelProto:
    """Return a model whose weight lies at `location`."""
    model = good()
    model.graph.initializer[0].CopyFrom(outside(location, **more))
    return model


def rich() -> onnx.ModelProto:
    """Return a model with a bit of everything: subgraph, attribute tensor, sparse, external and typed data, texts, notes."""
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["h", "c"], [f"{op}_out"], name=op)],
            f"{op}_branch",
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, ["n", 4])],
        )
        for op in ("Add", "Mul")
    ]
    nodes = [
        helper.make_node(
            "Constant", [], ["c"], value=helper.make_tensor("v", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
        ),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="mm"),
        helper.make_node("If", ["yes"], ["z"], name="choose", then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Softmax", ["z"], ["s"], axis=-1),
        helper.make_node("Reshape", ["s", "shape"], ["y"]),
    ]
    nodes[1].metadata_props.add(key="source", value="model.py:12")
    weights = [
        outside("w.bin", offset="0", length="64"),
        numpy_helper.from_array(np.array(True), "yes"),
        helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 4]),
    ]
    return graph_of(nodes, weights)


def edited(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    """Return the good model after `change`."""
    model = good()
    change(model)
    return model


def varint(number: int) -> bytes:
    """Encode a protobuf varint."""
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def wrapped(graph: bytes) -> bytes:
    """Return a model file around raw bytes of a graph: ir_version 8, opset 17."""
    return b"\x08\x08" + b"\x42\x04\x0a\x00\x10\x11" + b"\x3a" + varint(len(graph)) + graph
