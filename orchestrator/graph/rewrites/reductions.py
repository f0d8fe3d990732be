"""Reductions whose parser ends before the toolchain's last opset, and a triangle and an Einsum for those that have none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from orchestrator.graph.rewrites.base import CannotRewrite
from orchestrator.graph.rewrites.build import (
    Builder,
    argument,
    attribute,
    constant_of,
    dims_of,
    need_dtype,
    need_rank,
    needed,
)
from orchestrator.graph.rewrites.each import each


@each("ReduceL1", "ReduceL2")
def decompose_reduce_norms(b: Builder, node: ir.Node) -> None:
    """ReduceL1: sum |x|. ReduceL2: sqrt(sum x^2)."""
    x, out = needed(node, 0), node.outputs[0]
    rest = list(node.inputs[1:])
    inner = b.op("Abs", [x], "abs", like=x) if node.op_type == "ReduceL1" else b.op("Mul", [x, x], "square", like=x)
    kept = {name: attribute(node, name) for name in ("keepdims", "noop_with_empty_axes") if name in node.attributes}
    if "axes" in node.attributes:
        raise CannotRewrite("its axes are an attribute: the graph is older than opset 18")
    total = b.op("ReduceSum", [inner, *rest], "sum", like=out, **kept)
    b.replace(total if node.op_type == "ReduceL1" else b.op("Sqrt", [total], "root", like=out))


@each("Trilu")
def decompose_trilu(b: Builder, node: ir.Node) -> None:
    """Trilu (opset 14): Where with a mask, constant where the last two dimensions are known."""
    x = needed(node, 0)
    dtype, upper = need_dtype(x), int(attribute(node, "upper", 1)) != 0
    diagonal = constant_of(argument(node, 1))
    if argument(node, 1) is not None and diagonal is None:
        raise CannotRewrite("its diagonal is computed")
    k = 0 if diagonal is None else int(diagonal.reshape(-1)[0])
    rows, columns = (dims_of(x) or [None, None])[-2:]
    if rows is not None and columns is not None and rows * columns <= 1 << 22:
        ones = np.ones((rows, columns), np.bool_)
        mask = b.constant(np.triu(ones, k) if upper else np.tril(ones, k), "mask")
    else:
        mask = _computed_mask(b, x, k, upper=upper)
    if dtype == np.bool_:
        b.replace(b.op("And", [x, mask], "and", like=x))
        return
    b.replace(b.op("Where", [mask, x, b.constant(np.zeros((), dtype), "zero")], "where", like=x))


def _computed_mask(b: Builder, x: ir.Value, k: int, *, upper: bool) -> ir.Value:
    rank, int64 = need_rank(x, "the input"), ir.DataType.INT64
    shape = b.op("Shape", [x], "shape", dtype=int64, shape=[rank])
    zero, one = b.constant(np.array(0, np.int64), "start"), b.constant(np.array(1, np.int64), "step")
    ranges: list[ir.Value] = []
    for axis, label in ((rank - 2, "rows"), (rank - 1, "columns")):
        index = b.constant(np.array(axis, np.int64), f"{label}_axis")
        size = b.op("Gather", [shape, index], f"{label}_count", dtype=int64, shape=[])
        ranges.append(b.op("Range", [zero, size, one], label, dtype=int64, shape=[None]))
    column = b.unsqueeze(ranges[1], [0], "across")
    row = b.op("Add", [b.unsqueeze(ranges[0], [1], "down"), b.constant(np.array(k, np.int64), "k")], "limit",
               dtype=int64, shape=[None, 1])  # fmt: skip
    outside = b.op("Less" if upper else "Greater", [column, row], "outside", dtype=ir.DataType.BOOL, shape=[None, None])
    return b.op("Not", [outside], "mask", like=outside)


@each("Einsum")
def decompose_einsum(b: Builder, node: ir.Node) -> None:
    """Einsum (opset 12) of two operands, with at most one free index on each side and one summed: a MatMul.

    Without common indices that stay, the left side may have more free ones: they are MatMul's batch.
    """
    left, right, out = _terms(node)
    if len(set(left)) != len(left) or len(set(right)) != len(right) or not set(out) <= set(left + right):
        raise CannotRewrite("an index is repeated")
    batch = [c for c in out if c in left and c in right]
    summed = [c for c in left if c in right and c not in out]
    free = [[c for c in term if c not in other] for term, other in ((left, right), (right, left))]
    if any(c not in out for side in free for c in side):
        raise CannotRewrite("an index is summed on one side only")
    if len(summed) > 1 or len(free[1]) > 1 or (batch and len(free[0]) > 1):
        raise CannotRewrite("more than one free or summed index")
    lead = batch or free[0][:-1]
    x = _arranged(b, needed(node, 0), left, lead, (free[0][-1:], summed), "left")
    y = _arranged(b, needed(node, 1), right, batch, (summed, free[1]), "right")
    product = b.op("MatMul", [x, y], "matmul", dtype=x.dtype, shape=[None] * (len(lead) + 2))
    absent = [len(lead) + side for side in (0, 1) if not free[side]]
    if absent:
        product = b.squeeze(product, absent, "squeeze")
    order = lead + free[0][-1:] + free[1]
    if order != list(out):
        product = b.op("Transpose", [product], "transpose", like=node.outputs[0], perm=[order.index(c) for c in out])
    b.replace(product)


def _terms(node: ir.Node) -> tuple[str, str, str]:
    equation = str(attribute(node, "equation")).replace(" ", "")
    inputs, arrow, out = equation.partition("->")
    terms = inputs.split(",")
    if not arrow or len(terms) != 2 or "." in equation:
        raise CannotRewrite(f"equation {equation!r} is not one of two plain operands")
    return terms[0], terms[1], out


def _arranged(
    b: Builder, x: ir.Value, term: str, batch: list[str], last: tuple[list[str], list[str]], suffix: str
) -> ir.Value:
    """Bring an operand into [batch..., row, column]; a missing row or column has size 1."""
    order = [*batch, *last[0], *last[1]]
    if order != list(term):
        x = b.op(
            "Transpose", [x], suffix, dtype=x.dtype, shape=[None] * len(order), perm=[term.index(c) for c in order]
        )
    absent = [len(batch) + place for place in (0, 1) if not last[place]]
    for place in absent:
        x = b.unsqueeze(x, [place], f"{suffix}_axis")
    return x
