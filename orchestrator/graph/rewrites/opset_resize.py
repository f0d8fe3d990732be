"""Resize before opset 18: scales, sizes and regions for every axis, and none of the newer options."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from orchestrator.graph.rewrites.base import CannotRewrite
from orchestrator.graph.rewrites.build import Builder, argument, attribute, constant_of, need_rank, needed


def resize_18(b: Builder, node: ir.Node) -> bool:
    """Take off `antialias`, `axes` and `keep_aspect_ratio_policy`; below 13 scales and region must be there."""
    if attribute(node, "antialias", 0):
        raise CannotRewrite("antialias came with opset 18")
    if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise CannotRewrite("keep_aspect_ratio_policy came with opset 18")
    if attribute(node, "coordinate_transformation_mode", "half_pixel") == "half_pixel_symmetric":
        raise CannotRewrite("half_pixel_symmetric came with opset 19")
    gone = [node.attributes.pop(name, None) for name in ("antialias", "keep_aspect_ratio_policy")]
    touched = any(gone)
    axes = node.attributes.pop("axes", None)
    if axes is not None:
        touched = True
        rank = need_rank(needed(node, 0), "the input")
        places = [axis % rank for axis in axes.as_ints()]
        if places != list(range(rank)):
            _all_axes(b, node, places, rank)
    return touched


def resize_13(b: Builder, node: ir.Node) -> bool:
    """Region and scales may not be left out: empty ones say the same."""
    touched = False
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    for index, label in ((1, "roi"), (2, "scales")):
        if argument(node, index) is None:
            node.replace_input_with(index, b.constant(np.zeros(0, np.float32), label))
            touched = True
    return touched


def _all_axes(b: Builder, node: ir.Node, places: list[int], rank: int) -> None:
    if argument(node, 1) is not None and attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise CannotRewrite("it crops along some axes only")
    if argument(node, 2) is not None:
        given = constant_of(argument(node, 2))
        scales = b.constant(np.ones(rank, np.float32), "ones") if given is None else None
        if given is not None:
            full = np.ones(rank, np.float32)
            full[places] = given
            node.replace_input_with(2, b.constant(full, "scales"))
        elif scales is not None:
            node.replace_input_with(2, _merged(b, scales, needed(node, 2), places, rank, "scales"))
    if argument(node, 3) is not None:
        shape = b.op("Shape", [needed(node, 0)], "shape", dtype=ir.DataType.INT64, shape=[rank])
        node.replace_input_with(3, _merged(b, shape, needed(node, 3), places, rank, "sizes"))


def _merged(b: Builder, whole: ir.Value, some: ir.Value, places: list[int], rank: int, suffix: str) -> ir.Value:
    """Return `whole` with the entries at `places` taken from `some`: one Gather out of both, behind one another."""
    order = [rank + places.index(axis) if axis in places else axis for axis in range(rank)]
    both = b.op("Concat", [whole, some], f"{suffix}_both", dtype=some.dtype, shape=[None], axis=0)
    return b.op("Gather", [both, b.ints(order, f"{suffix}_order")], suffix, dtype=some.dtype, shape=[rank], axis=0)
