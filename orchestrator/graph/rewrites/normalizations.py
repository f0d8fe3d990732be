"""Normalisations out of ReduceMean, which every toolchain reads at every opset and which keeps the epsilon.

Mean and variance are taken in the element type of the graph, fp32; `stash_type` asks for no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from orchestrator.graph.rewrites.base import CannotRewrite, Context, schema
from orchestrator.graph.rewrites.build import (
    Builder,
    argument,
    attribute,
    dims_of,
    need_dtype,
    need_rank,
    needed,
    opset_of,
    rank_of,
)
from orchestrator.graph.rewrites.each import each


def _axes_from(node: ir.Node, x: ir.Value, default: int) -> list[int]:
    axis = int(attribute(node, "axis", default))
    if axis < 0:
        return list(range(axis, 0))
    return list(range(axis, need_rank(x, "the input")))


def _moments(b: Builder, x: ir.Value, axes: Sequence[int], epsilon: float) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return mean, x - mean, and sqrt(variance + epsilon)."""
    mean = b.reduce("ReduceMean", x, axes, "mean")
    centred = b.op("Sub", [x, mean], "centred", like=x)
    square = b.op("Mul", [centred, centred], "square", like=x)
    variance = b.reduce("ReduceMean", square, axes, "variance")
    shifted = b.op("Add", [variance, b.scalar(epsilon, x, "epsilon")], "shifted", like=variance)
    return mean, centred, b.op("Sqrt", [shifted], "deviation", like=variance)


def _affine(b: Builder, y: ir.Value, scale: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    if scale is not None:
        y = b.op("Mul", [y, scale], "scaled", like=y)
    return y if bias is None else b.op("Add", [y, bias], "biased", like=y)


@each("LayerNormalization")
def decompose_layer_normalization(b: Builder, node: ir.Node) -> None:
    """LayerNormalization (opset 17), with its optional outputs Mean and InvStdDev."""
    x = needed(node, 0)
    need_dtype(x)
    axes = _axes_from(node, x, -1)
    mean, centred, deviation = _moments(b, x, axes, float(attribute(node, "epsilon", 1e-5)))
    normal = b.op("Div", [centred, deviation], "normal", like=x)
    outputs: list[ir.Value | None] = [_affine(b, normal, needed(node, 1), argument(node, 2)), None, None]
    if len(node.outputs) > 1 and _used(node.outputs[1]):
        outputs[1] = mean
    if len(node.outputs) > 2 and _used(node.outputs[2]):
        outputs[2] = b.op("Reciprocal", [deviation], "inverse", like=deviation)
    b.replace(*outputs)


def _used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


@each("RMSNormalization")
def decompose_rms_normalization(b: Builder, node: ir.Node) -> None:
    """RMSNormalization (opset 23): x / sqrt(mean(x^2) + epsilon) * scale."""
    x = needed(node, 0)
    need_dtype(x)
    axes = _axes_from(node, x, -1)
    square = b.op("Mul", [x, x], "square", like=x)
    mean = b.reduce("ReduceMean", square, axes, "mean")
    epsilon = b.scalar(float(attribute(node, "epsilon", 1e-5)), x, "epsilon")
    shifted = b.op("Add", [mean, epsilon], "shifted", like=mean)
    root = b.op("Sqrt", [shifted], "root", like=mean)
    normal = b.op("Div", [x, root], "normal", like=x)
    b.replace(_affine(b, normal, needed(node, 1), None))


@each("GroupNormalization")
def decompose_group_normalization(b: Builder, node: ir.Node) -> None:
    """GroupNormalization: at opset 18 scale and bias have one value per group, from 21 on one per channel."""
    x, scale, bias = needed(node, 0), needed(node, 1), needed(node, 2)
    rank, groups = need_rank(x, "the input"), int(attribute(node, "num_groups"))
    need_dtype(x)
    per_group = opset_of(b.model) < 21
    dims = dims_of(x) or []
    channels = dims[1] if len(dims) > 1 else None
    if per_group and channels is not None and channels % groups:
        raise CannotRewrite(f"{channels} channels do not fall into {groups} groups")
    split = b.op(
        "Reshape", [x, b.ints([0, groups, -1], "groups")], "split", dtype=x.dtype, shape=[dims[0], groups, None]
    )
    _, centred, deviation = _moments(b, split, [2], float(attribute(node, "epsilon", 1e-5)))
    normal = b.op("Div", [centred, deviation], "normal", like=split)
    if per_group:
        normal = _affine(b, normal, _column(b, scale, 3, "scale"), _column(b, bias, 3, "bias"))
    whole = b.op(
        "Reshape", [normal, b.op("Shape", [x], "shape", dtype=ir.DataType.INT64, shape=[rank])], "whole", like=x
    )
    if not per_group:
        whole = _affine(b, whole, _column(b, scale, rank, "scale"), _column(b, bias, rank, "bias"))
    b.replace(whole)


def _column(b: Builder, weights: ir.Value, rank: int, suffix: str) -> ir.Value:
    """Return a vector along axis 1 of a tensor of `rank`."""
    shape = [-1] + [1] * (rank - 2)
    known = dims_of(weights)
    size = known[0] if known else None
    return b.op(
        "Reshape", [weights, b.ints(shape, f"{suffix}_shape")], suffix, dtype=weights.dtype, shape=[size, *shape[1:]]
    )


def _odd_rank(context: Context, node: ir.Node) -> bool:
    """MindSpore Lite takes the wrong axis for the channels of an InstanceNormalization that is not an image."""
    if context.forced or schema(node.op_type, context.opset) is None:
        return True
    return context.toolchain == "mindspore-lite" and rank_of(node.inputs[0]) != 4


@each("InstanceNormalization", when=_odd_rank)
def decompose_instance_normalization(b: Builder, node: ir.Node) -> None:
    """InstanceNormalization, over all axes from 2 on."""
    x = needed(node, 0)
    rank = need_rank(x, "the input")
    need_dtype(x)
    _, centred, deviation = _moments(b, x, list(range(2, rank)), float(attribute(node, "epsilon", 1e-5)))
    normal = b.op("Div", [centred, deviation], "normal", like=x)
    scale, bias = _column(b, needed(node, 1), rank, "scale"), _column(b, needed(node, 2), rank, "bias")
    b.replace(_affine(b, normal, scale, bias))
