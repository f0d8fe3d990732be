"""Activations that a toolchain does not know, out of ones that all know."""

from __future__ import annotations

import math

import onnx_ir as ir

from orchestrator.graph.rewrites.build import Builder, attribute, needed
from orchestrator.graph.rewrites.each import each


@each("Gelu")
def decompose_gelu(b: Builder, node: ir.Node) -> None:
    """Gelu (opset 20): x/2 (1 + erf(x/sqrt 2)), or with tanh(sqrt(2/pi) (x + 0.044715 x^3))."""
    x = needed(node, 0)
    half = b.scalar(0.5, x, "half")
    if attribute(node, "approximate", "none") == "tanh":
        square = b.op("Mul", [x, x], "square", like=x)
        cube = b.op("Mul", [square, x], "cube", like=x)
        cube = b.op("Mul", [cube, b.scalar(0.044715, x, "cubic")], "cubed", like=x)
        inner = b.op("Add", [x, cube], "inner", like=x)
        inner = b.op("Mul", [inner, b.scalar(math.sqrt(2.0 / math.pi), x, "scale")], "scaled", like=x)
        gate = b.op("Tanh", [inner], "tanh", like=x)
    else:
        inner = b.op("Div", [x, b.scalar(math.sqrt(2.0), x, "root")], "scaled", like=x)
        gate = b.op("Erf", [inner], "erf", like=x)
    gate = b.op("Add", [gate, b.scalar(1.0, x, "one")], "gate", like=x)
    gated = b.op("Mul", [x, gate], "gated", like=x)
    b.replace(b.op("Mul", [gated, half], "mul", like=x))


@each("HardSwish")
def decompose_hard_swish(b: Builder, node: ir.Node) -> None:
    """HardSwish (opset 14): x max(0, min(1, x/6 + 1/2)), as ONNX defines it."""
    x = needed(node, 0)
    gate = b.op("HardSigmoid", [x], "hard_sigmoid", like=x, alpha=1.0 / 6.0, beta=0.5)
    b.replace(b.op("Mul", [x, gate], "mul", like=x))


@each("Mish")
def decompose_mish(b: Builder, node: ir.Node) -> None:
    """Mish (opset 18): x tanh(softplus(x))."""
    x = needed(node, 0)
    soft = b.op("Softplus", [x], "softplus", like=x)
    gate = b.op("Tanh", [soft], "tanh", like=x)
    b.replace(b.op("Mul", [x, gate], "mul", like=x))


@each("Swish")
def decompose_swish(b: Builder, node: ir.Node) -> None:
    """Swish (opset 24): x sigmoid(alpha x)."""
    x = needed(node, 0)
    alpha = float(attribute(node, "alpha", 1.0))
    inner = x if alpha == 1.0 else b.op("Mul", [x, b.scalar(alpha, x, "alpha")], "scaled", like=x)
    gate = b.op("Sigmoid", [inner], "sigmoid", like=x)
    b.replace(b.op("Mul", [x, gate], "mul", like=x))


@each("CastLike")
def decompose_cast_like(b: Builder, node: ir.Node) -> bool:
    """CastLike (opset 15): a Cast to the type that the second input has."""
    x, other = needed(node, 0), needed(node, 1)
    if other.dtype is None:
        return False
    b.replace(b.op("Cast", [x], "cast", dtype=other.dtype, shape=None, to=int(other.dtype)))
    return True
