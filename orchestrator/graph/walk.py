"""Our own walk over an ONNX file, before any library with a C++ core looks at it.

`onnx.load` takes a 0-byte file without a word, runtimes read external data outside the model's folder, crash on functions
that call themselves and hang on deep nesting. So: size, structure, names of external files and nesting are checked here,
on the parsed protobuf alone, and whatever is not plainly fine is refused. Even parsing costs up to eighty times the file's
size in memory, so for unknown files this runs in the child of `graph/sandbox.py`.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import onnx
import onnx.defs
from google.protobuf.message import DecodeError

from orchestrator.core.errors import GateError
from orchestrator.graph.limits import Limits
from orchestrator.graph.tensor_rules import TensorRules, refused

_NEWEST_OPSET: Final = int(onnx.defs.onnx_opset_version())
_NEWEST_IR: Final = int(onnx.IR_VERSION)
_OLDEST_IR: Final = 3


def load_checked(path: Path, limits: Limits) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Parse the file without its external data, walk it, and return it with the names of its external files.

    Raises:
        GateError: The file is damaged or hostile; the message says what was found.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(read_whole(path, limits))
    except DecodeError as error:
        raise refused(path, f"not an ONNX protobuf ({error})") from error
    return model, walk(model, path, limits)


def read_whole(path: Path, limits: Limits) -> bytes:
    """Read the file, which must be a regular one (a link to one is fine) of a size within the limits.

    Raises:
        GateError: It is not.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not make us wait for its writer
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise refused(path, "not a regular file")
            if not 0 < status.st_size <= limits.file_size_bytes:
                raise refused(path, f"{status.st_size} bytes, expected 1 to {limits.file_size_bytes}")
            return file.read(status.st_size)
    except OSError as error:
        if isinstance(error, IsADirectoryError):
            raise refused(path, "not a regular file") from error
        raise GateError(f"the ONNX file cannot be read: {error}", place=path.name) from error


def walk(model: onnx.ModelProto, path: Path, limits: Limits) -> tuple[str, ...]:
    """Check everything that the protobuf holds; return the names of the external files.

    Raises:
        GateError: Something is damaged or hostile.
    """
    return _Walk(path, limits).run(model)


def check_shapes(model: onnx.ModelProto, path: Path, limits: Limits) -> None:
    """Check the shapes of all values again, once inference has found them: what would a runtime allocate?

    Raises:
        GateError: A value is bigger than the limits allow.
    """
    _Walk(path, limits).shapes(model)


class _Walk:
    """One pass; the counters run over all graphs of the file."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path, self._limits = path, limits
        self._nodes = self._values = 0
        self._tensors = TensorRules(path, limits)

    def run(self, model: Any) -> tuple[str, ...]:
        self._head(model)
        todo: list[tuple[Any, int]] = [(model.graph, 1)]
        while todo:  # no recursion: the file chooses the depth
            graph, depth = todo.pop()
            if depth > self._limits.depth:
                raise self._refused(f"graphs nested deeper than {self._limits.depth}")
            todo.extend((inner, depth + 1) for inner in self._graph(graph))
        self._tensors.finish()
        return tuple(sorted(self._tensors.files))

    def shapes(self, model: Any) -> None:
        todo: list[Any] = [model.graph]
        while todo:
            graph = todo.pop()
            for value in (*graph.output, *graph.value_info):
                self._value(value)
            for node in graph.node:
                for attribute in node.attribute:
                    todo.extend([attribute.g] if attribute.HasField("g") else [])
                    todo.extend(attribute.graphs)

    def _refused(self, what: str) -> GateError:
        return refused(self._path, what)

    def _text(self, *texts: Any) -> None:
        """Check names: protobuf hands out those that are not UTF-8 as bytes, which would surprise whoever reads them."""
        for text in texts:
            if not isinstance(text, str):
                raise self._refused(f"a name is not UTF-8: {text[:80]!r}")
            if len(text) > self._limits.name_length:
                raise self._refused(f"a name of {len(text)} characters: {text[:80]!r}…")

    def _notes(self, entries: Any) -> None:
        for entry in entries:
            self._text(entry.key, entry.value)

    def _head(self, model: Any) -> None:
        self._text(model.producer_name, model.producer_version, *(entry.domain for entry in model.opset_import))
        self._notes(model.metadata_props)
        if not model.HasField("graph") or not model.graph.node:
            raise self._refused("it has no graph or an empty one")
        if not _OLDEST_IR <= model.ir_version <= _NEWEST_IR:
            raise self._refused(f"ir_version {model.ir_version}, expected {_OLDEST_IR} to {_NEWEST_IR}")
        domains = [_domain(entry.domain) for entry in model.opset_import]
        if len(domains) != len(set(domains)):
            raise self._refused(f"an operator domain is imported twice: {[name[:80] for name in domains[:8]]}")
        if "" not in domains or any(entry.version < 1 for entry in model.opset_import):
            raise self._refused("it imports no opset of ai.onnx")
        opset = next(entry.version for entry in model.opset_import if _domain(entry.domain) == "")
        if not self._limits.oldest_opset <= opset <= _NEWEST_OPSET:
            raise self._refused(f"opset {opset}, expected {self._limits.oldest_opset} to {_NEWEST_OPSET}")
        foreign = sorted(set(domains) - self._limits.domains)
        if foreign:
            raise self._refused(f"operator domains {[name[:80] for name in foreign[:8]]} are not allowed")
        if model.functions:
            count = len(model.functions)
            raise self._refused(f"{count} local functions; inline them (onnx.inliner.inline_local_functions)")
        if model.training_info:
            raise self._refused("it carries training information")

    def _graph(self, graph: Any) -> Iterator[Any]:
        """Check one graph; yield those inside its nodes."""
        self._nodes += len(graph.node)
        self._values += len(graph.input) + len(graph.output) + len(graph.value_info)
        self._tensors.expect(len(graph.initializer))
        self._text(graph.name)
        self._notes(graph.metadata_props)
        if self._nodes > self._limits.nodes or self._values > self._limits.values:
            raise self._refused(f"more than {self._limits.nodes} nodes or {self._limits.values} declared values")
        for tensor in graph.initializer:
            self._tensors.check(tensor)
        for sparse in graph.sparse_initializer:
            self._tensors.check_sparse(sparse)
        for value in (*graph.input, *graph.output, *graph.value_info):
            self._value(value)
        self._unique((tensor.name for tensor in graph.initializer), "initializer")
        self._unique((value.name for value in graph.input), "input")
        self._unique((value.name for value in graph.output), "output")
        self._unique((name for node in graph.node for name in node.output if name), "output of a node")
        for node in graph.node:
            yield from self._node(node)

    def _unique(self, names: Iterable[str], what: str) -> None:
        seen: set[str] = set()
        for name in names:
            self._text(name)
            if not name or name in seen:
                raise self._refused(f"two of its tensors are called {name[:80]!r}, or one has no name ({what})")
            seen.add(name)

    def _node(self, node: Any) -> Iterator[Any]:
        self._text(node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
        self._notes(node.metadata_props)
        label = f"node {node.name[:80]!r}"
        if not node.op_type:
            raise self._refused(f"{label} has no operator")
        if _domain(node.domain) not in self._limits.domains:
            raise self._refused(f"{label} has operator domain {node.domain[:80]!r}, which is not allowed")
        if len({attribute.name for attribute in node.attribute}) != len(node.attribute):
            raise self._refused(f"{label} has two attributes of one name")
        for attribute in node.attribute:
            yield from self._attribute(attribute, label)

    def _attribute(self, attribute: Any, label: str) -> Iterator[Any]:
        self._text(attribute.name)
        if attribute.ref_attr_name:
            raise self._refused(f"{label} takes attribute {attribute.name[:80]!r} from a function that is not there")
        for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
            self._tensors.check(tensor)
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for item in (*sparse, *attribute.sparse_tensors):
            self._tensors.check_sparse(item)
        for kind in (*([attribute.tp] if attribute.HasField("tp") else []), *attribute.type_protos):
            self._type(kind, label)
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs

    def _value(self, value: Any) -> None:
        self._text(value.name)
        self._notes(value.metadata_props)
        self._type(value.type, f"value {value.name[:80]!r}")

    def _type(self, kind: Any, label: str) -> None:
        for _ in range(self._limits.type_depth):
            which = kind.WhichOneof("value")
            if which in {"sequence_type", "optional_type"}:
                kind = getattr(kind, which).elem_type
            elif which == "map_type":
                kind = kind.map_type.value_type
            else:
                if which is not None:
                    self._shape(getattr(kind, which), label)
                return
        raise self._refused(f"{label} has a type nested deeper than {self._limits.type_depth}")

    def _shape(self, tensor: Any, label: str) -> None:
        if not hasattr(tensor, "shape"):
            return
        self._text(*(dim.dim_param for dim in tensor.shape.dim))
        dims = [dim.dim_value for dim in tensor.shape.dim if dim.HasField("dim_value")]
        if len(tensor.shape.dim) > self._limits.rank or any(dim < 0 for dim in dims):
            raise self._refused(f"{label} has dimensions {dims[:20]}; name those that may vary")
        if math.prod(dim for dim in dims if dim) > self._limits.elements:
            raise self._refused(f"{label} has dimensions {dims[:20]}: more than {self._limits.elements} elements")


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
