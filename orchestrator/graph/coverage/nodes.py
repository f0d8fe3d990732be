"""A graph as coverage sees it: every node with the types, shapes and constants around it, in subgraphs too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from orchestrator.graph.canonical import SOURCE_KEY

_DTYPES: Final = {
    number: name.lower()
    for name, number in TensorProto.DataType.items()
    if name not in {"UNDEFINED", "FLOAT", "DOUBLE"}
} | {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"}
_KNOWN_SHAPE: Final = frozenset({"Shape", "Size"})
_NOT_FOLDED: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "If", "Loop", "Scan"}
)  # fmt: skip

Dims = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a tensor.

    Attributes:
        dtype: Numpy's name, `bfloat16` and the like besides; empty where inference found none.
        shape: None where not even the rank is known; a dimension that is not known is its name or `?`.
        constant: Its value is there when the toolchain compiles: a weight, or computed from weights and shapes alone.
        array: Small constants themselves.
        given: It is an input of the whole graph, turned perhaps.
    """

    dtype: str = ""
    shape: Dims | None = None
    constant: bool = False
    array: np.ndarray[Any, Any] | None = None
    given: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """One node with all that its checks look at.

    Attributes:
        inputs: One per input slot; None for one left out.
        folded: All its inputs are constant, or it only asks for a shape: the compiler computes it, no kernel is needed.
        captures: Names that its subgraphs read from the graphs around them.
        repeated: An earlier node of the same graph has the same name.
    """

    name: str
    op_type: str
    domain: str
    path: str
    source: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value | None, ...]
    folded: bool
    captures: frozenset[str] = frozenset()
    repeated: bool = False

    def value(self, index: int) -> Value:
        """Return input `index`, an empty value where there is none."""
        found = self.inputs[index] if index < len(self.inputs) else None
        return found or Value()

    def has(self, index: int) -> bool:
        """Tell whether input `index` is connected."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def rank(self, index: int = 0) -> int | None:
        """Return the rank of input `index`, None where it is not known."""
        shape = self.value(index).shape
        return None if shape is None else len(shape)

    def ints(self, name: str) -> list[int]:
        """Return an attribute of integers, empty when absent."""
        return [int(item) for item in self.attributes.get(name, ())]

    def integer(self, name: str, default: int = 0) -> int:
        """Return an integer attribute."""
        return int(self.attributes.get(name, default))

    def text(self, name: str, default: str = "") -> str:
        """Return a string attribute."""
        found = self.attributes.get(name, default)
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)


@dataclass(slots=True)
class _Scope:
    """Names visible in one graph."""

    outer: _Scope | None = None
    values: dict[str, Value] = field(default_factory=dict[str, Value])

    def get(self, name: str) -> Value:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        return Value()


def nodes_of(model: onnx.ModelProto) -> Iterator[Node]:
    """Yield every node, a node's subgraphs right after it; `model` must have its types inferred."""
    opsets = {_domain(entry.domain): int(entry.version) for entry in model.opset_import}
    yield from _graph(model.graph, _Scope(), "", opsets)


def _graph(graph: Any, scope: _Scope, path: str, opsets: Mapping[str, int]) -> Iterator[Node]:
    for info in (*graph.value_info, *graph.output):
        scope.values[info.name] = _declared(info)
    for info in graph.input:
        scope.values[info.name] = replace(_declared(info), given=scope.outer is None)
    for tensor in graph.initializer:
        scope.values[tensor.name] = _weight(tensor)
    for sparse in graph.sparse_initializer:
        dims = tuple(int(dim) for dim in sparse.dims)
        scope.values[sparse.values.name] = Value(_DTYPES.get(sparse.values.data_type, ""), dims, constant=True)
    seen: set[str] = set()
    for number, proto in enumerate(graph.node):
        node = _node(proto, number, scope, path, opsets, seen)
        _settle(proto, node, scope)
        yield node
        for label, inner in _subgraphs(proto):
            below = f"{path}/{node.name}/{label}" if path else f"{node.name}/{label}"
            yield from _graph(inner, _Scope(scope), below, opsets)


def _node(proto: Any, number: int, scope: _Scope, path: str, opsets: Mapping[str, int], seen: set[str]) -> Node:
    domain = _domain(proto.domain)
    inputs = tuple(scope.get(name) if name else None for name in proto.input)
    constant = all(value is None or value.constant for value in inputs)
    folded = (constant or proto.op_type in _KNOWN_SHAPE) and not domain and proto.op_type not in _NOT_FOLDED
    repeated = bool(proto.name) and proto.name in seen
    seen.add(proto.name)
    return Node(
        name=proto.name or f"{proto.op_type}_{number} (unnamed)",
        op_type=proto.op_type,
        domain=domain,
        path=path,
        source=next((entry.value for entry in proto.metadata_props if entry.key == SOURCE_KEY), ""),
        opset=opsets.get(domain, 0),
        attributes={a.name: helper.get_attribute_value(a) for a in proto.attribute if not a.ref_attr_name},
        inputs=inputs,
        outputs=tuple(scope.get(name) if name else None for name in proto.output),
        folded=folded,
        captures=frozenset(name for _, inner in _subgraphs(proto) for name in _free(inner)),
        repeated=repeated,
    )


def _settle(proto: Any, node: Node, scope: _Scope) -> None:
    """Mark the outputs of a folded node as constant, with the value of a `Constant`; a turned input is still given."""
    if proto.op_type == "Transpose" and node.value(0).given:
        scope.values[proto.output[0]] = replace(scope.get(proto.output[0]), given=True)
    if not node.folded:
        return
    array = _constant(node) if proto.op_type == "Constant" else None
    for name in filter(None, proto.output):
        known = scope.get(name)
        dtype = known.dtype or (str(array.dtype) if array is not None else "")
        shape = known.shape if known.shape is not None or array is None else tuple(array.shape)
        scope.values[name] = Value(dtype, shape, constant=True, array=array)


def _constant(node: Node) -> np.ndarray[Any, Any] | None:
    for name, found in node.attributes.items():
        if name == "value":
            return _array(found)
        if name in {"value_int", "value_ints"}:
            return np.asarray(found, np.int64)
        if name in {"value_float", "value_floats"}:
            return np.asarray(found, np.float32)
    return None


def _subgraphs(proto: Any) -> Iterator[tuple[str, Any]]:
    for attribute in proto.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        for number, inner in enumerate(attribute.graphs):
            yield f"{attribute.name}[{number}]", inner


def _free(graph: Any) -> set[str]:
    """Return the names that a subgraph reads and does not make."""
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    read: set[str] = set()
    for proto in graph.node:
        read.update(name for name in proto.input if name not in made)
        for _, inner in _subgraphs(proto):
            read.update(name for name in _free(inner) if name not in made)
        made.update(proto.output)
    return (read | {value.name for value in graph.output if value.name not in made}) - {""}


def _declared(info: Any) -> Value:
    if not info.type.HasField("tensor_type"):
        return Value()
    tensor = info.type.tensor_type
    shape: Dims | None = None
    if tensor.HasField("shape"):
        shape = tuple(
            int(dim.dim_value) if dim.HasField("dim_value") else (str(dim.dim_param) or "?") for dim in tensor.shape.dim
        )
    return Value(_DTYPES.get(tensor.elem_type, ""), shape)


def _weight(tensor: Any) -> Value:
    dims = tuple(int(dim) for dim in tensor.dims)
    return Value(_DTYPES.get(tensor.data_type, ""), dims, constant=True, array=_array(tensor))


def _array(tensor: Any) -> np.ndarray[Any, Any] | None:
    """Return a tensor's numbers, None where they are not there (big ones lie outside) or are no plain numbers."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING:
        return None
    return numpy_helper.to_array(tensor)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
