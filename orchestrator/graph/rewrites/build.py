"""Making nodes: named after the node that they replace, with its source line, in the form of the graph's opset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from orchestrator.graph.rewrites.base import CannotRewrite, Problem

Array = np.ndarray[Any, Any]
AttributeValue = int | float | str | Sequence[int] | Sequence[float] | ir.TensorProtocol

_NUMPY = {
    ir.DataType.FLOAT: np.float32, ir.DataType.DOUBLE: np.float64, ir.DataType.FLOAT16: np.float16,
    ir.DataType.INT32: np.int32, ir.DataType.INT64: np.int64, ir.DataType.BOOL: np.bool_,
    ir.DataType.INT8: np.int8, ir.DataType.UINT8: np.uint8, ir.DataType.INT16: np.int16,
    ir.DataType.UINT16: np.uint16, ir.DataType.UINT32: np.uint32, ir.DataType.UINT64: np.uint64,
}  # fmt: skip


def nodes(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """Return the nodes of `ai.onnx`, in subgraphs too, in order; of these types where any are given."""
    return [
        node
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.domain in {"", "ai.onnx"} and (not op_types or node.op_type in op_types)
    ]


def graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """Yield the graph and every graph inside its nodes, in file order."""
    yield graph
    for node in graph:
        for inner in subgraphs(node):
            yield from graphs(inner)


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """Return the graphs in the node's attributes."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def opset_of(model: ir.Model) -> int:
    """Return the opset of `ai.onnx`."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return an attribute's value, or the default where the node does not state it."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def argument(node: ir.Node, index: int) -> ir.Value | None:
    """Return the input, or None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def needed(node: ir.Node, index: int) -> ir.Value:
    """Return an input that must be there."""
    value = argument(node, index)
    if value is None:
        raise CannotRewrite(f"input {index} is missing")
    return value


def constant_of(value: ir.Value | None) -> Array | None:
    """Return the array of an initializer or a Constant node; None for all else (also for defaults of graph inputs)."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def rank_of(value: ir.Value | None) -> int | None:
    """Return the number of dimensions where it is known."""
    return None if value is None or value.shape is None else value.shape.rank()


def dims_of(value: ir.Value | None) -> list[int | None] | None:
    """Return the dimensions, None for those that may vary; None where not even the rank is known."""
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else None for dim in value.shape]


def need_rank(value: ir.Value, what: str) -> int:
    """Return the rank, or say that the rewrite needs it."""
    rank = rank_of(value)
    if rank is None:
        raise CannotRewrite(f"the rank of {what} {value.name!r} is not known")
    return rank


def need_dtype(value: ir.Value) -> Any:
    """Return the numpy dtype, or say that the rewrite needs it."""
    if value.dtype is None or value.dtype not in _NUMPY:
        raise CannotRewrite(f"the element type of {value.name!r} is {value.dtype or 'not known'}")
    return np.dtype(cast("Any", _NUMPY[value.dtype]))


def source_of(node: ir.Node) -> str:
    """Return `file:line` of the user's code, where the exporter kept it."""
    return node.metadata_props.get("source", "")


def problem(node: ir.Node, reason: str) -> Problem:
    """Return the problem with its place."""
    return Problem(node.name or "", node.op_type, reason, source_of(node))


class Names:
    """All names of nodes and of values in a model, so that new ones are unique."""

    def __init__(self, model: ir.Model) -> None:
        self.nodes: set[str] = set()
        self.values: set[str] = set()
        for graph in graphs(model.graph):
            self.values.update(value.name or "" for value in (*graph.inputs, *graph.initializers.values()))
            for node in graph:
                self.nodes.add(node.name or "")
                self.values.update(value.name or "" for value in node.outputs)

    def node(self, stem: str) -> str:
        """Return a name for a node that no other has."""
        return _unused(stem, self.nodes)

    def value(self, stem: str) -> str:
        """Return a name for a tensor that no other has."""
        return _unused(stem, self.values)


def _unused(stem: str, taken: set[str]) -> str:
    name, number = stem, 0
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return name


class Builder:
    """New nodes in place of one: `x/<suffix>`, before `x`, in `x`'s graph.

    Constants become initializers of the main graph; inside a subgraph, Constant nodes, since not every parser lets a
    branch see weights of its own.
    """

    def __init__(self, model: ir.Model, node: ir.Node, names: Names) -> None:
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        self.model, self.origin, self.names, self.graph = model, node, names, graph
        self.opset = opset_of(model)
        self.made: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        suffix: str,
        *,
        like: ir.Value | None = None,
        dtype: ir.DataType | None = None,
        shape: Sequence[int | str | None] | None = None,
        **attributes: AttributeValue,
    ) -> ir.Value:
        """Add a node of one output; its type is `like`'s, or `dtype` and `shape` where given."""
        node = ir.node(
            op_type, inputs, attributes, name=self.names.node(f"{self.origin.name}/{suffix}"),
            metadata_props=dict(self.origin.metadata_props),
        )  # fmt: skip
        out = node.outputs[0]
        out.name = self.names.value(f"{node.name}_out")
        kind = dtype or (like.dtype if like is not None else None)
        out.type = None if kind is None else ir.TensorType(kind)
        if shape is not None:
            out.shape = ir.Shape(shape)
        elif like is not None and like.shape is not None:
            out.shape = ir.Shape(like.shape)
        self.graph.insert_before(self.origin, node)
        self.made.append(node)
        return out

    def constant(self, array: Array, suffix: str) -> ir.Value:
        """Add a constant."""
        tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array)
        if self.graph is not self.model.graph:
            value = self.op("Constant", [], suffix, dtype=tensor.dtype, shape=array.shape, value=tensor)
            value.const_value = tensor
            return value
        name = self.names.value(f"{self.origin.name}/{suffix}")
        tensor.name = name
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def scalar(self, number: float, like: ir.Value, suffix: str) -> ir.Value:
        """Add a constant of rank 0 with the element type of `like`."""
        return self.constant(np.array(number, need_dtype(like)), suffix)

    def ints(self, numbers: Sequence[int], suffix: str) -> ir.Value:
        """Add an int64 vector."""
        return self.constant(np.array(numbers, np.int64), suffix)

    def reduce(self, op_type: str, x: ir.Value, axes: Sequence[int], suffix: str, *, keepdims: int = 1) -> ir.Value:
        """Add a reduction, with its axes where this opset has them."""
        shape = _reduced(x, axes, keepdims)
        since = 13 if op_type == "ReduceSum" else 18
        if self.opset >= since:
            inputs = [x, self.ints(axes, f"{suffix}_axes")]
            return self.op(op_type, inputs, suffix, dtype=x.dtype, shape=shape, keepdims=keepdims)
        return self.op(op_type, [x], suffix, dtype=x.dtype, shape=shape, keepdims=keepdims, axes=tuple(axes))

    def unsqueeze(self, x: ir.Value, axes: Sequence[int], suffix: str) -> ir.Value:
        """Add an Unsqueeze; axes count in the result and are not negative."""
        shape: list[int | str | None] | None = None
        if x.shape is not None:
            shape = _plain(x)
            for axis in sorted(axes):
                shape.insert(axis, 1)
        if self.opset >= 13:
            return self.op("Unsqueeze", [x, self.ints(axes, f"{suffix}_axes")], suffix, dtype=x.dtype, shape=shape)
        return self.op("Unsqueeze", [x], suffix, dtype=x.dtype, shape=shape, axes=tuple(axes))

    def squeeze(self, x: ir.Value, axes: Sequence[int], suffix: str) -> ir.Value:
        """Add a Squeeze; axes are not negative."""
        shape = None if x.shape is None else [dim for axis, dim in enumerate(_plain(x)) if axis not in axes]
        if self.opset >= 13:
            return self.op("Squeeze", [x, self.ints(axes, f"{suffix}_axes")], suffix, dtype=x.dtype, shape=shape)
        return self.op("Squeeze", [x], suffix, dtype=x.dtype, shape=shape, axes=tuple(axes))

    def replace(self, *outputs: ir.Value | None) -> None:
        """Put `outputs` in place of the node's, under their names, and take the node out."""
        for old, new in zip(self.origin.outputs, outputs, strict=False):
            if new is None:
                continue
            if new.producer() not in self.made:  # an input handed through: its name is not ours to change
                new = self.op("Identity", [new], "same", like=old)  # noqa: PLW2901
            new.type, new.shape = old.type or new.type, old.shape if old.shape is not None else new.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            new.name, old.name = old.name, None
        self.graph.remove(self.origin, safe=True)


def _plain(value: ir.Value) -> list[int | str | None]:
    assert value.shape is not None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def _reduced(x: ir.Value, axes: Sequence[int], keepdims: int) -> list[int | str | None] | None:
    rank = rank_of(x)
    if rank is None:
        return None
    gone = {axis % rank for axis in axes}
    dims = _plain(x)
    return [1 if axis in gone else dim for axis, dim in enumerate(dims) if keepdims or axis not in gone]
