"""Attributes that a graph leaves to ONNX's defaults, written out for a toolchain that has defaults of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from orchestrator.graph.rewrites.base import CannotRewrite
from orchestrator.graph.rewrites.build import Builder, argument, attribute, need_dtype, need_rank, needed
from orchestrator.graph.rewrites.each import each, on_demand

_BOUNDS_ARE_INPUTS: Final = 11
"""Opset since which Clip takes its bounds as inputs, and Resize has a coordinate mode."""


def _steps(b: Builder, node: ir.Node) -> bool:
    """`strides` and `dilations` of a convolution: 1 along every axis."""
    del b
    missing = [name for name in ("strides", "dilations") if name not in node.attributes]
    if missing:
        axes = need_rank(needed(node, 1), "the weight") - 2
        node.attributes.update({name: ir.AttrInt64s(name, [1] * axes) for name in missing})
    return bool(missing)


def _numbers(**defaults: float) -> Callable[[Builder, ir.Node], bool]:
    stated = [ir.AttrFloat32(name, value) for name, value in defaults.items()]
    return lambda _, node: sum(_state(node, attr) for attr in stated) > 0


def _whole(name: str, default: int) -> Callable[[Builder, ir.Node], bool]:
    return lambda _, node: _state(node, ir.AttrInt64(name, default))


def _order(b: Builder, node: ir.Node) -> bool:
    """Without `perm`, the axes are reversed."""
    del b
    if "perm" in node.attributes:
        return False
    rank = need_rank(needed(node, 0), "the input")
    return _state(node, ir.AttrInt64s("perm", list(reversed(range(rank)))))


def _coordinates(b: Builder, node: ir.Node) -> bool:
    """Older Resize has no such attribute, and other coordinates."""
    linear = attribute(node, "mode", "nearest") == "linear"
    mode = ir.AttrString("coordinate_transformation_mode", "half_pixel")
    return b.opset >= _BOUNDS_ARE_INPUTS and linear and _state(node, mode)


def _lower_bound(b: Builder, node: ir.Node) -> bool:
    """A maximum alone: the minimum is the lowest number of the type."""
    if b.opset < _BOUNDS_ARE_INPUTS or argument(node, 2) is None or argument(node, 1) is not None:
        return False
    dtype = np.dtype(need_dtype(needed(node, 0)))
    if dtype.kind not in "fiu":
        raise CannotRewrite(f"{dtype} has no lowest number")
    lowest: Any = np.finfo(dtype).min if dtype.kind == "f" else np.iinfo(dtype).min
    node.replace_input_with(1, b.constant(np.array(lowest, dtype), "min"))
    return True


def _state(node: ir.Node, stated: ir.Attr) -> bool:
    if stated.name in node.attributes:
        return False
    node.attributes[stated.name] = stated
    return True


_WRITE: Final[Mapping[str, Callable[[Builder, ir.Node], bool]]] = {
    "ArgMax": _whole("keepdims", 1),
    "Clip": _lower_bound,
    "Conv": _steps,
    "ConvTranspose": _steps,
    "Elu": _numbers(alpha=1.0),
    "LRN": _numbers(alpha=1e-4, beta=0.75, bias=1.0),
    "LayerNormalization": _whole("axis", -1),
    "LeakyRelu": _numbers(alpha=0.01),
    "OneHot": _whole("axis", -1),
    "Resize": _coordinates,
    "Transpose": _order,
}


@each(*_WRITE, when=on_demand)
def write_out_defaults(b: Builder, node: ir.Node) -> bool:
    """State what the node leaves to ONNX's defaults, of what this toolchain gets wrong when it is left out."""
    return _WRITE[node.op_type](b, node)
