"""Convolutions and poolings in a form that a kernel exists for: large ones split, one-dimensional ones with a second axis."""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np
import onnx_ir as ir

from orchestrator.graph.rewrites.base import CannotRewrite, Context
from orchestrator.graph.rewrites.build import (
    Array,
    Builder,
    argument,
    attribute,
    constant_of,
    dims_of,
    needed,
    rank_of,
)
from orchestrator.graph.rewrites.each import each

LARGEST_KERNEL: Final = 255
"""Height and width of a convolution kernel that ATC's operator list allows."""

LARGEST_POOL: Final = 256
"""Height times width of a pooling window above which ATC goes to the AI CPU."""


def _large(context: Context, node: ir.Node) -> bool:
    del context
    kernel = _kernel(node)
    if node.op_type == "Conv":
        return any(size > LARGEST_KERNEL for size in kernel)
    return len(kernel) == 2 and kernel[0] * kernel[1] > LARGEST_POOL and min(kernel) > 1


def _kernel(node: ir.Node) -> list[int]:
    stated = attribute(node, "kernel_shape")
    if stated is not None:
        return [int(size) for size in stated]
    dims = dims_of(argument(node, 1))
    return [size or 0 for size in dims[2:]] if dims else []


@each("Conv", "MaxPool", when=_large)
def split_large_kernel(b: Builder, node: ir.Node) -> None:
    """Conv: a sum of convolutions with pieces of the kernel. MaxPool: rows first, then columns."""
    if attribute(node, "auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        raise CannotRewrite(f"auto_pad {attribute(node, 'auto_pad')}")
    if node.op_type == "MaxPool":
        _split_pool(b, node)
        return
    weights = constant_of(argument(node, 1))
    if weights is None:
        raise CannotRewrite("its kernel is computed")
    space = weights.ndim - 2
    x, pads = needed(node, 0), [int(p) for p in attribute(node, "pads", [0] * (2 * space))]
    if any(pads):
        full = [0, 0, *pads[:space], 0, 0, *pads[space:]]
        x = b.op("Pad", [x, b.ints(full, "pads")], "pad", dtype=x.dtype, shape=[None] * weights.ndim)
    total: ir.Value | None = None
    for number, (starts, piece) in enumerate(_pieces(weights)):
        part = _convolve_piece(b, node, x, weights.shape[2:], starts, piece, f"part_{number}")
        total = part if total is None else b.op("Add", [total, part], f"sum_{number}", like=node.outputs[0])
    assert total is not None
    bias = argument(node, 2)
    if bias is not None:
        column = b.op("Reshape", [bias, b.ints([1, -1, *[1] * space], "bias_shape")], "bias", dtype=bias.dtype,
                      shape=[1, None, *[1] * space])  # fmt: skip
        total = b.op("Add", [total, column], "biased", like=node.outputs[0])
    b.replace(total)


def _pieces(weights: Array) -> list[tuple[tuple[int, ...], Array]]:
    """Return (first tap along each axis, that part of the kernel); each axis falls into equal parts, nearly."""
    cuts: list[list[tuple[int, int]]] = []
    for size in weights.shape[2:]:
        count = -(-size // LARGEST_KERNEL)
        edges = [size * part // count for part in range(count + 1)]
        cuts.append(list(itertools.pairwise(edges)))
    grid: list[tuple[tuple[int, int], ...]] = [()]
    for axis in cuts:
        grid = [(*done, cut) for done in grid for cut in axis]
    return [
        (tuple(cut[0] for cut in cell), weights[(slice(None), slice(None), *(slice(*cut) for cut in cell))])
        for cell in grid
    ]


def _convolve_piece(
    b: Builder, node: ir.Node, x: ir.Value, kernel: tuple[int, ...], starts: tuple[int, ...], piece: Array, suffix: str
) -> ir.Value:
    """Convolve with the part of the kernel that begins at `starts`: on the window of x that this part sees."""
    space = len(kernel)
    dilations = [int(d) for d in attribute(node, "dilations", [1] * space)]
    first = [start * step for start, step in zip(starts, dilations, strict=True)]
    after = [
        (size - start - part) * step
        for size, start, part, step in zip(kernel, starts, piece.shape[2:], dilations, strict=True)
    ]
    last = [-count if count else int(np.iinfo(np.int64).max) for count in after]
    axes = list(range(2, 2 + space))
    window = b.op(
        "Slice", [x, b.ints(first, f"{suffix}_from"), b.ints(last, f"{suffix}_to"), b.ints(axes, f"{suffix}_axes")],
        f"{suffix}_window", dtype=x.dtype, shape=[None] * (2 + space),
    )  # fmt: skip
    weights = b.constant(np.ascontiguousarray(piece), f"{suffix}_weight")
    return b.op(
        "Conv", [window, weights], suffix, like=node.outputs[0], kernel_shape=list(piece.shape[2:]),
        strides=[int(s) for s in attribute(node, "strides", [1] * space)], dilations=dilations,
        group=int(attribute(node, "group", 1)), pads=[0] * (2 * space),
    )  # fmt: skip


def _split_pool(b: Builder, node: ir.Node) -> None:
    if len(node.outputs) > 1 or attribute(node, "ceil_mode", 0):
        raise CannotRewrite("it gives indices, or rounds its size up")
    (kh, kw), out = _kernel(node), node.outputs[0]
    sh, sw = (int(s) for s in attribute(node, "strides", (1, 1)))
    top, left, bottom, right = (int(p) for p in attribute(node, "pads", (0, 0, 0, 0)))
    dh, dw = (int(d) for d in attribute(node, "dilations", (1, 1)))
    rows = b.op("MaxPool", [needed(node, 0)], "rows", dtype=out.dtype, shape=[None] * 4, kernel_shape=[kh, 1],
                strides=[sh, 1], pads=[top, 0, bottom, 0], dilations=[dh, 1])  # fmt: skip
    b.replace(b.op("MaxPool", [rows], "columns", like=out, kernel_shape=[1, kw], strides=[1, sw],
                   pads=[0, left, 0, right], dilations=[1, dw]))  # fmt: skip


def _one_axis(context: Context, node: ir.Node) -> bool:
    del context
    return rank_of(argument(node, 0)) == 3 or len(_kernel(node)) == 1


@each("Conv", "ConvTranspose", "MaxPool", "AveragePool", when=_one_axis)
def conv1d_to_2d(b: Builder, node: ir.Node) -> None:
    """A convolution or pooling along one axis, as one over an image of height 1."""
    if len(node.outputs) > 1:
        raise CannotRewrite("it gives indices")
    x, out = needed(node, 0), node.outputs[0]
    inputs: list[ir.Value | None] = [b.unsqueeze(x, [2], "image")]
    weights = argument(node, 1)
    if weights is not None:
        array = constant_of(weights)
        inputs.append(
            b.unsqueeze(weights, [2], "kernel") if array is None else b.constant(array[:, :, None, :], "kernel")
        )
        inputs.extend(node.inputs[2:])
    attributes = {name: _with_height(name, found) for name, found in node.attributes.items()}
    wide = ir.Node("", node.op_type, inputs, attributes, num_outputs=1, name=b.names.node(f"{node.name}/image_op"),
                   metadata_props=dict(node.metadata_props))  # fmt: skip
    result = wide.outputs[0]
    result.name, result.type = b.names.value(f"{wide.name}_out"), out.type
    b.graph.insert_before(node, wide)
    b.made.append(wide)
    if out.shape is not None:
        dims = [dim if isinstance(dim, int) else dim.value for dim in out.shape]
        result.shape = ir.Shape([*dims[:2], 1, *dims[2:]])
    b.replace(b.squeeze(result, [2], "squeeze"))


def _with_height(name: str, found: ir.Attr) -> ir.Attr:
    if found.type != ir.AttributeType.INTS:
        return found
    values = list(found.as_ints())
    if name == "pads":
        half = len(values) // 2
        return ir.AttrInt64s(name, (0, *values[:half], 0, *values[half:]))
    return ir.AttrInt64s(name, (0 if name == "output_padding" else 1, *values))
