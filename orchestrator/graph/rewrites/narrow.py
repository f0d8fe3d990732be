"""Element types that an NPU has no fast kernels for: float64 becomes float32, int64 inputs become int32."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_ir as ir

from orchestrator.graph.rewrites.base import Changes, Context
from orchestrator.graph.rewrites.build import Builder, Names, constant_of, graphs, nodes

_TYPE_ATTRIBUTES: Final = ("to", "dtype", "output_datatype", "output_dtype", "softmax_precision")
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_INT32: Final = np.iinfo(np.int32)

_MOVEMENT: Final = frozenset(
    {"Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Flatten", "Identity", "Tile", "Slice", "Gather"}
)
"""Operators that only move their first input; where it is int32, so is what comes out."""

_INDEXED: Final = frozenset({"Gather", "GatherElements", "ScatterElements"})
"""Operators whose second input, the indices, may be int32 or int64."""


def narrow_float64(model: ir.Model, context: Context) -> Changes:
    """Compute in float32 what the graph computes in float64; its inputs and outputs keep their types."""
    del context
    changes, names = Changes(), Names(model)
    found = [value for graph in graphs(model.graph) for value in _values(graph) if value.dtype == ir.DataType.DOUBLE]
    outer = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    edge = {id(value) for value in found if id(value) in outer and _is_parted(value)}
    doubles = [value for value in found if id(value) not in edge]
    if not doubles:
        return changes
    for value in doubles:
        _narrow_weight(value, changes)
    changes.nodes.extend(_narrow_attributes(model, edge))
    for value in doubles:
        producer = value.producer()
        changes.nodes.append((producer.name if producer is not None else value.name) or "")
        if id(value) not in outer:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    meant = {id(value) for value in doubles}
    for value in model.graph.inputs:
        if id(value) in meant:
            _cast_input(model, value, ir.DataType.FLOAT, names)
    for index, value in enumerate(model.graph.outputs):
        if id(value) in meant and value.producer() is not None:
            _cast_output(model, index, value, names)
    changes.nodes = list(dict.fromkeys(changes.nodes))
    return changes


def _is_parted(value: ir.Value) -> bool:
    """Whether a Cast already parts this input or output of the graph from the rest."""
    producer = value.producer()
    if value.is_graph_input():
        return bool(value.uses()) and all(use.node.op_type == "Cast" for use in value.uses())
    return producer is not None and producer.op_type == "Cast" and value.is_graph_output() and not value.uses()


def _values(graph: ir.Graph) -> list[ir.Value]:
    produced = [value for node in graph for value in node.outputs]
    found = [*graph.inputs, *graph.initializers.values(), *produced]
    return list({id(value): value for value in found}.values())


def _narrow_weight(value: ir.Value, changes: Changes) -> None:
    if value.const_value is None or value.producer() is not None:
        return
    array = value.const_value.numpy()
    finite = np.abs(array[np.isfinite(array)])
    if finite.size and float(finite.max()) > _FLOAT32_MAX:
        changes.notes.append(f"weight {value.name!r} holds {float(finite.max()):g}, which float32 makes infinite")
    with np.errstate(over="ignore"):
        value.const_value = ir.tensor(array.astype(np.float32), name=value.name)


def _narrow_attributes(model: ir.Model, edge: set[int]) -> list[str]:
    touched: list[str] = []
    for node in nodes(model):
        if node.outputs and id(node.outputs[0]) in edge:
            continue
        for name, found in list(node.attributes.items()):
            if found.type == ir.AttributeType.INT and name in _TYPE_ATTRIBUTES and found.as_int() == ir.DataType.DOUBLE:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
                touched.append(node.name or "")
            elif found.type == ir.AttributeType.TENSOR and found.as_tensor().dtype == ir.DataType.DOUBLE:
                with np.errstate(over="ignore"):
                    tensor = ir.tensor(found.as_tensor().numpy().astype(np.float32))
                node.attributes[name] = ir.AttrTensor(name, tensor)
                if node.op_type == "Constant":
                    node.outputs[0].const_value = tensor
                touched.append(node.name or "")
    return touched


def _cast(model: ir.Model, x: ir.Value, to: ir.DataType, name: str, names: Names) -> ir.Node:
    del model
    cast = ir.node("Cast", [x], {"to": int(to)}, name=names.node(name))
    out = cast.outputs[0]
    out.name, out.type, out.shape = names.value(f"{name}_out"), ir.TensorType(to), x.shape
    return cast


def _cast_input(model: ir.Model, value: ir.Value, to: ir.DataType, names: Names) -> None:
    """Put a Cast behind a graph input."""
    uses = list(value.uses())
    if not uses:
        return
    cast = _cast(model, value, to, f"{value.name}/cast", names)
    first = next(iter(model.graph))
    model.graph.insert_before(first, cast)
    for use in uses:
        use.node.replace_input_with(use.idx, cast.outputs[0])


def _cast_output(model: ir.Model, index: int, value: ir.Value, names: Names) -> None:
    """Let what was the output be float32 under another name, and a Cast write the output."""
    producer, name = value.producer(), value.name
    assert producer is not None
    value.type, value.name = ir.TensorType(ir.DataType.FLOAT), names.value(f"{name}/float32")
    cast = _cast(model, value, ir.DataType.DOUBLE, f"{name}/cast", names)
    cast.outputs[0].name = name
    model.graph.append(cast)
    model.graph.outputs[index] = cast.outputs[0]


def narrow_int64(model: ir.Model, context: Context) -> Changes:
    """Take int64 graph inputs as int32, and carry them so through moves, look-ups and comparisons.

    Sums and products stay int64: what they may grow to is not known. A constant that does not fit stays as well.
    """
    del context
    changes, names = Changes(), Names(model)
    for value in model.graph.inputs:
        if value.dtype == ir.DataType.INT64:
            value.type = ir.TensorType(ir.DataType.INT32)
            _cast_input(model, value, ir.DataType.INT64, names)
            changes.nodes.append(value.name or "")
            changes.notes.append(f"input {value.name!r} is int32 now; values must fit")
    wide = [node for node in nodes(model, "Cast") if _widens(node)] if changes else []
    while wide:
        node = wide.pop()
        for use in list(node.outputs[0].uses()):
            wide.extend(_push(model, node, use.node, use.idx, names))
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output() and node.graph is not None:
            node.graph.remove(node, safe=True)
    return changes


def _widens(node: ir.Node) -> bool:
    x = node.inputs[0]
    return x is not None and x.dtype == ir.DataType.INT32 and node.attributes["to"].as_int() == ir.DataType.INT64


def _push(model: ir.Model, cast: ir.Node, user: ir.Node, index: int, names: Names) -> list[ir.Node]:
    """Let one user of a widening Cast read the int32 tensor; return the Casts that this puts behind it."""
    narrow = cast.inputs[0]
    if narrow is None or user.domain not in {"", "ai.onnx"}:
        return []
    if user.op_type == "Cast" or (user.op_type in _INDEXED and index == 1):
        user.replace_input_with(index, narrow)
        return []
    if user.op_type in {"Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"}:
        _push_comparison(model, cast, user, index, names)
        return []
    if user.op_type not in _MOVEMENT or index != 0 or user.graph is not cast.graph:
        return []
    user.replace_input_with(0, narrow)
    out = user.outputs[0]
    widened = _cast(model, out, ir.DataType.INT64, f"{user.name}/cast", names)
    uses, is_output = [use for use in out.uses() if use.node is not widened], out.is_graph_output()
    if is_output:  # the output keeps its name and its type
        widened.outputs[0].name, out.name = out.name, names.value(f"{out.name}/int32")
        position = next(i for i, value in enumerate(model.graph.outputs) if value is out)
        model.graph.outputs[position] = widened.outputs[0]
    out.type = ir.TensorType(ir.DataType.INT32)
    for use in uses:
        use.node.replace_input_with(use.idx, widened.outputs[0])
    assert user.graph is not None
    user.graph.insert_after(user, widened)
    return [widened]


def _push_comparison(model: ir.Model, cast: ir.Node, user: ir.Node, index: int, names: Names) -> None:
    other = user.inputs[1 - index]
    array: Any = constant_of(other)
    producer = other.producer() if other is not None else None
    if array is not None and array.size and _INT32.min <= array.min() and array.max() <= _INT32.max:
        b = Builder(model, user, names)
        user.replace_input_with(1 - index, b.constant(array.astype(np.int32), "int32"))
    elif producer is not None and producer.op_type == "Cast" and _widens(producer):
        user.replace_input_with(1 - index, producer.inputs[0])
    else:
        return
    user.replace_input_with(index, cast.inputs[0])
