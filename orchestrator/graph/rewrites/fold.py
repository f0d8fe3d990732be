"""Constant folding of our own, bounded in size: what depends on nothing but weights is computed once, here.

ONNX Runtime computes it, with all of its own optimisations off, so that the numbers are those that the graph had before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
import onnx_ir as ir
import onnxruntime

from orchestrator.graph.rewrites.base import Changes, Context
from orchestrator.graph.rewrites.build import Array, argument, attribute, constant_of, dims_of, subgraphs

LARGEST_RESULT_BYTES: Final = 1 << 20
"""A folded tensor may not be bigger; bigger ones are cheaper to compute than to carry."""

LARGEST_INPUT_BYTES: Final = 64 << 20

_KEPT: Final = frozenset(
    {"Constant", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli",
     "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Dropout"}
)  # fmt: skip
_ort = cast("Any", onnxruntime)
_ERRORS_ONLY: Final = 3


def fold_constants(model: ir.Model, context: Context) -> Changes:
    """Fold the main graph; branches and loop bodies stay as they are, but see the folded values."""
    del context
    changes = Changes()
    folded = _sizes(model.graph, changes)
    chosen = _foldable(model.graph)
    if not chosen and not folded:
        return changes
    inside = {id(node) for node in chosen}
    frontier = [
        value for node in chosen for value in node.outputs
        if value.is_graph_output() or any(id(use.node) not in inside for use in value.uses())
    ]  # fmt: skip
    values = _evaluate(model, chosen, frontier) if frontier else {}
    for value in frontier:
        array, producer = values[value.name or ""], value.producer()
        if producer is None or array.nbytes > LARGEST_RESULT_BYTES or value.is_graph_output():
            continue
        _replace(model.graph, value, array)
        changes.nodes.append(producer.name or "")
    for node in reversed(chosen):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            model.graph.remove(node, safe=True)
            changes.nodes.append(node.name or "")
    changes.nodes = list(dict.fromkeys(changes.nodes))
    _drop_unused(model.graph)
    return changes


def _sizes(graph: ir.Graph, changes: Changes) -> list[ir.Node]:
    """Replace Shape of a tensor whose dimensions are all known."""
    found: list[ir.Node] = []
    for node in list(graph):
        if node.op_type != "Shape" or node.domain not in {"", "ai.onnx"} or node.outputs[0].is_graph_output():
            continue
        dims = dims_of(argument(node, 0))
        if dims is None:
            continue
        start, end = int(attribute(node, "start", 0)), attribute(node, "end")
        wanted = dims[start : None if end is None else int(end)]
        if any(dim is None for dim in wanted):
            continue
        _replace(graph, node.outputs[0], np.array(wanted, np.int64))
        graph.remove(node, safe=True)
        changes.nodes.append(node.name or "")
        found.append(node)
    return found


def _foldable(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes that depend on constants only, in order, as far as their results are small."""
    chosen: list[ir.Node] = []
    known: set[int] = set()
    for node in graph:
        if node.domain not in {"", "ai.onnx"} or node.op_type in _KEPT or subgraphs(node) or not node.inputs:
            continue
        inputs = [value for value in node.inputs if value is not None]
        if not inputs or not all(id(value) in known or _small_constant(value) for value in inputs):
            continue
        if not all(_small_result(value) for value in node.outputs):
            continue
        chosen.append(node)
        known.update(id(value) for value in node.outputs)
    return chosen


def _small_constant(value: ir.Value) -> bool:
    if value.is_graph_input():
        return False
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.nbytes <= LARGEST_INPUT_BYTES


def _small_result(value: ir.Value) -> bool:
    dims = dims_of(value)
    if dims is None or value.dtype is None or any(dim is None for dim in dims):
        return False
    size = int(np.prod([dim or 0 for dim in dims], dtype=np.float64)) * max(1, value.dtype.itemsize)
    return size <= LARGEST_RESULT_BYTES


def _evaluate(model: ir.Model, chosen: Sequence[ir.Node], frontier: Sequence[ir.Value]) -> dict[str, Array]:
    """Run the chosen nodes as a graph of their own."""
    inside = {id(value) for node in chosen for value in node.outputs}
    outer = {
        value.name: value for node in chosen for value in node.inputs if value is not None and id(value) not in inside
    }
    copies: dict[str, ir.Value] = {}
    weights: list[ir.Value] = []
    for name, value in outer.items():
        array = constant_of(value)
        assert array is not None
        assert name is not None
        tensor = ir.tensor(array, name=name)
        copies[name] = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        weights.append(copies[name])
    made: list[ir.Node] = []
    for node in chosen:
        inputs = [None if value is None else copies[value.name or ""] for value in node.inputs]
        copy = ir.Node("", node.op_type, inputs, dict(node.attributes), num_outputs=len(node.outputs), name=node.name)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type, new.shape = old.name, old.type, old.shape
            copies[old.name or ""] = new
        made.append(copy)
    outputs = [copies[value.name or ""] for value in frontier]
    graph = ir.Graph(
        [], outputs, nodes=made, initializers=weights, opset_imports=dict(model.opset_imports), name="fold"
    )
    proto = ir.to_proto(ir.Model(graph, ir_version=min(model.ir_version, 10)))
    options = _ort.SessionOptions()
    options.graph_optimization_level = _ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    session = _ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name or "" for value in frontier]
    return dict(zip(names, cast("list[Array]", session.run(names, {})), strict=True))


def _replace(graph: ir.Graph, value: ir.Value, array: Array) -> None:
    """Let all users read an initializer under the same name."""
    name = value.name or ""
    tensor = ir.tensor(np.asarray(array), name=name)
    weight = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    value.replace_all_uses_with(weight)
    value.name = None
    graph.register_initializer(weight)


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
