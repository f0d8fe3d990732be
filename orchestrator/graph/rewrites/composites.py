"""Small operators that a toolchain has no parser for, out of ones that it has. Each keeps NaN and infinity as ONNX says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import onnx_ir as ir

from orchestrator.graph.rewrites.base import CannotRewrite, Context
from orchestrator.graph.rewrites.build import Builder, attribute, need_dtype, needed, rank_of
from orchestrator.graph.rewrites.each import each

_UNSIGNED: Final = "bu"


def or_equal(b: Builder, node: ir.Node) -> bool:
    """GreaterOrEqual, LessOrEqual: strictly, or equal. Not(Less) would say yes to NaN."""
    pair, out = [needed(node, 0), needed(node, 1)], node.outputs[0]
    strict = b.op(node.op_type.removesuffix("OrEqual"), pair, "strict", like=out, dtype=ir.DataType.BOOL)
    equal = b.op("Equal", pair, "equal", like=strict)
    b.replace(b.op("Or", [strict, equal], "or", like=strict))
    return True


def shape_part(b: Builder, node: ir.Node) -> bool:
    """Shape with `start` and `end` (opset 15): the whole shape, and a Slice of it."""
    start, end = int(attribute(node, "start", 0)), attribute(node, "end")
    touched = [node.attributes.pop(name, None) for name in ("start", "end")]
    if start == 0 and end is None:
        return any(touched)
    out = node.outputs[0]
    whole = b.op("Shape", [needed(node, 0)], "whole", dtype=ir.DataType.INT64, shape=[rank_of(node.inputs[0])])
    stop = int(end) if end is not None else np.iinfo(np.int64).max
    b.replace(b.op("Slice", [whole, b.ints([start], "start"), b.ints([stop], "end")], "slice", like=out))
    return True


def _has_part(context: Context, node: ir.Node) -> bool:
    del context
    return attribute(node, "start", 0) != 0 or attribute(node, "end") is not None


@each("Shape", when=_has_part)
def slice_shape(b: Builder, node: ir.Node) -> bool:
    """Shape of some axes, for a toolchain that gives those of all."""
    return shape_part(b, node)


def _is_nan(b: Builder, node: ir.Node) -> bool:
    """Only NaN is not equal to itself."""
    x = needed(node, 0)
    same = b.op("Equal", [x, x], "same", dtype=ir.DataType.BOOL)
    b.replace(b.op("Not", [same], "not", like=same))
    return True


def _soft_sign(b: Builder, node: ir.Node) -> bool:
    x = needed(node, 0)
    size = b.op("Abs", [x], "abs", like=x)
    below = b.op("Add", [size, b.scalar(1.0, x, "one")], "below", like=x)
    b.replace(b.op("Div", [x, below], "div", like=x))
    return True


def _arg_min(b: Builder, node: ir.Node) -> bool:
    """The first least is the first greatest of the negated; not for types that cannot be negated."""
    x = needed(node, 0)
    if need_dtype(x).kind in _UNSIGNED:
        raise CannotRewrite("its input has no negative numbers")
    negative = b.op("Neg", [x], "neg", like=x)
    kept = {
        name: attribute(node, name) for name in ("axis", "keepdims", "select_last_index") if name in node.attributes
    }
    b.replace(b.op("ArgMax", [negative], "arg_max", like=node.outputs[0], **kept))
    return True


def _tan(b: Builder, node: ir.Node) -> bool:
    x = needed(node, 0)
    b.replace(b.op("Div", [b.op("Sin", [x], "sin", like=x), b.op("Cos", [x], "cos", like=x)], "div", like=x))
    return True


def _celu(b: Builder, node: ir.Node) -> bool:
    """Alpha Elu(x / alpha)."""
    x, alpha = needed(node, 0), float(attribute(node, "alpha", 1.0))
    factor = b.scalar(alpha, x, "alpha")
    inner = b.op("Elu", [b.op("Div", [x, factor], "scaled", like=x)], "elu", like=x, alpha=1.0)
    b.replace(b.op("Mul", [inner, factor], "mul", like=x))
    return True


def _selu(b: Builder, node: ir.Node) -> bool:
    """Gamma Elu(x, alpha); the defaults are those of ONNX."""
    x = needed(node, 0)
    inner = b.op("Elu", [x], "elu", like=x, alpha=float(attribute(node, "alpha", 1.67326319217681884765625)))
    gamma = b.scalar(float(attribute(node, "gamma", 1.05070102214813232421875)), x, "gamma")
    b.replace(b.op("Mul", [inner, gamma], "mul", like=x))
    return True


def _thresholded_relu(b: Builder, node: ir.Node) -> bool:
    x = needed(node, 0)
    limit = b.scalar(float(attribute(node, "alpha", 1.0)), x, "alpha")
    above = b.op("Greater", [x, limit], "above", like=x, dtype=ir.DataType.BOOL)
    b.replace(b.op("Where", [above, x, b.constant(np.zeros((), need_dtype(x)), "zero")], "where", like=x))
    return True


_REPLACE: Final[Mapping[str, Callable[[Builder, ir.Node], bool]]] = {
    "GreaterOrEqual": or_equal,
    "LessOrEqual": or_equal,
    "IsNaN": _is_nan,
    "Softsign": _soft_sign,
    "ArgMin": _arg_min,
    "Tan": _tan,
    "Celu": _celu,
    "Selu": _selu,
    "ThresholdedRelu": _thresholded_relu,
}

COMPOSITES: Final = frozenset(_REPLACE)
"""Operators that `decompose_composites` knows."""


@each(*sorted(COMPOSITES))
def decompose_composites(b: Builder, node: ir.Node) -> bool:
    """Replace a small operator."""
    return _REPLACE[node.op_type](b, node)
