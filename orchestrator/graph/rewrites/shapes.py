"""Names and shapes: unique node names, dimensions that the recipe fixes, attributes that only say the default."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from orchestrator.ascend.quirks import JOINS
from orchestrator.graph.rewrites.base import Changes, Context
from orchestrator.graph.rewrites.build import (
    Builder,
    Names,
    attribute,
    constant_of,
    dims_of,
    graphs,
    needed,
    nodes,
    rank_of,
)
from orchestrator.graph.rewrites.each import each, on_demand

_IMAGE: Final = 4


def name_nodes(model: ir.Model, context: Context) -> Changes:
    """Give every node a name of its own: compilers, keep lists and error messages go by them."""
    del context
    changes, names, seen = Changes(), Names(model), set[str]()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        old = node.name or ""
        if not old or old in seen:
            node.name = names.node(old or f"node_{node.op_type}")
            changes.nodes.append(node.name)
        seen.add(node.name or "")
    return changes


def fix_shapes(model: ir.Model, context: Context) -> Changes:
    """Fix the named dimensions for which one size is asked; those with several stay, for the compiler's gears."""
    changes = Changes()
    had = _dimensions(model)
    fixed = {name: sizes[0] for name, sizes in context.shapes.items() if len(sizes) == 1}
    for name, sizes in context.shapes.items():
        if len(sizes) > 1 and name in had:
            changes.notes.append(
                f"dimension {name!r} stays dynamic; gears {', '.join(map(str, sizes))} go to the compiler"
            )
    for value in (*model.graph.inputs, *model.graph.outputs):
        if _fix(value, fixed):
            changes.nodes.append(value.name or "")
    if changes:
        _forget_shapes(model)
    changes.notes.extend(
        f"no input has a dimension {name!r}: its sizes change nothing" for name in context.shapes if name not in had
    )
    return changes


def _dimensions(model: ir.Model) -> set[str]:
    """Return the names of the inputs' dimensions."""
    shapes = [value.shape for value in model.graph.inputs if value.shape is not None]
    return {dim.value or "" for shape in shapes for dim in shape if isinstance(dim, ir.SymbolicDim)}


def _fix(value: ir.Value, fixed: dict[str, int]) -> bool:
    if value.shape is None:
        return False
    dims = [fixed.get(dim.value or "", dim) if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape]
    if dims == list(value.shape):
        return False
    value.shape = ir.Shape(dims)
    return True


def _forget_shapes(model: ir.Model) -> None:
    """Drop what was inferred with the dimensions open; it is inferred again."""
    kept = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for graph in graphs(model.graph):
        for node in graph:
            for value in node.outputs:
                if id(value) not in kept and node.op_type != "Constant":
                    value.shape = None


@each("MaxPool", when=on_demand)
def strip_dilations(b: Builder, node: ir.Node) -> bool:
    """MaxPool: take off dilations that are all 1, which torch always writes and this toolchain refuses."""
    del b
    dilations = attribute(node, "dilations")
    if dilations is None or any(int(value) != 1 for value in dilations):
        return False
    del node.attributes["dilations"]
    return True


@each(*JOINS, when=on_demand)
def reshape_joining_inputs(b: Builder, node: ir.Node) -> bool:
    """Images that are an input of the graph and join what was computed of them: read through a Reshape to their own shape.

    This toolchain turns images around convolutions to channels last, and cannot turn back what reaches such a node on one
    side only, unless a node stands between.
    """
    images = [value for value in node.inputs if value is not None and rank_of(value) == _IMAGE]
    given = [value for value in images if _is_given(b.model, value)]
    if all(value in given or constant_of(value) is not None for value in images):
        return False
    changed = False
    for index, value in enumerate(node.inputs):
        sizes = [dim for dim in dims_of(value) or () if dim is not None]
        if value not in given or len(sizes) != _IMAGE:
            continue
        shape = b.ints(sizes, f"shape_{index}")
        node.replace_input_with(index, b.op("Reshape", [value, shape], f"input_{index}", like=value))
        changed = True
    return changed


def _is_given(model: ir.Model, value: ir.Value) -> bool:
    """Tell whether a value is an input of the graph, turned perhaps."""
    while (node := value.producer()) is not None and node.op_type == "Transpose":
        value = needed(node, 0)
    return value in model.graph.inputs and value.const_value is None


def quantised(model: ir.Model) -> list[ir.Node]:
    """Return the nodes of a quantised graph (QDQ or integer operators)."""
    return nodes(
        model, "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
        "ConvInteger", "MatMulInteger",
    )  # fmt: skip
