"""Graphs of a few nodes in one line, for tests of passes over graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def graph(
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    weights: dict[str, Any] | None = None,
    opset: int = 18,
    outputs: dict[str, tuple[int, list[Any] | None]] | None = None,
) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in (outputs or {"y": (TensorProto.FLOAT, None)}).items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(kind: str, inputs: list[str], outputs: list[str] | None = None, name: str = "n", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, outputs or ["y"], name=name, **attributes)
