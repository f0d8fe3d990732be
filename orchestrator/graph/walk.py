"""Our own walk over an ONNX file, before any library with a C++ core looks at it.

`onnx.load` takes a 0-byte file without a word, runtimes read external data outside the model's folder, crash on functions
that call themselves and hang on deep nesting. So: size, structure, names of external files and nesting are checked here,
on the parsed protobuf alone, and whatever is not plainly fine is refused.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from orchestrator.core.errors import GateError

_EXTERNAL_KEYS: Final = frozenset({"location", "offset", "length"})
_ITEM_BYTES: Final = {
    TensorProto.FLOAT: 4, TensorProto.UINT8: 1, TensorProto.INT8: 1, TensorProto.UINT16: 2, TensorProto.INT16: 2,
    TensorProto.INT32: 4, TensorProto.INT64: 8, TensorProto.BOOL: 1, TensorProto.FLOAT16: 2, TensorProto.DOUBLE: 8,
    TensorProto.UINT32: 4, TensorProto.UINT64: 8, TensorProto.BFLOAT16: 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on what is read. The protobuf format itself ends at 2 GiB; bigger weights lie in external files.

    Attributes:
        domains: Operator domains that may appear; the empty one is `ai.onnx`.
    """

    file_size_bytes: int = 2**31 - 1
    external_size_bytes: int = 256 * 2**30
    nodes: int = 500_000
    tensors: int = 500_000
    depth: int = 16
    rank: int = 16
    domains: frozenset[str] = frozenset({""})


def load_checked(path: Path, limits: Limits) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Parse the file without its external data, walk it, and return it with the names of its external files.

    Raises:
        GateError: The file is damaged or hostile; the message says what was found.
    """
    model = _parse(path, limits)
    _check_head(model, path, limits)
    external: set[str] = set()
    nodes = tensors = 0
    for kind, item in _walk(model.graph, path, limits):
        if kind == "node":
            nodes += 1
            _check_node(item, path, limits)
        else:
            tensors += 1
            _check_tensor(item, path, limits, external)
        if nodes > limits.nodes or tensors > limits.tensors:
            raise _refused(path, f"more than {limits.nodes} nodes or {limits.tensors} tensors")
    total = sum((path.parent / name).stat().st_size for name in external)
    if total > limits.external_size_bytes:
        raise _refused(path, f"external files of {total} bytes, at most {limits.external_size_bytes}")
    return model, tuple(sorted(external))


def _refused(path: Path, what: str) -> GateError:
    return GateError(f"the ONNX file is refused: {what}", place=path.name, hint="export the model again")


def _parse(path: Path, limits: Limits) -> onnx.ModelProto:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _refused(path, "not a regular file")
        if not 0 < status.st_size <= limits.file_size_bytes:
            raise _refused(path, f"{status.st_size} bytes, expected 1 to {limits.file_size_bytes}")
        data = path.read_bytes()
    except OSError as error:
        raise GateError(f"the ONNX file cannot be read: {error}", place=path.name) from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise _refused(path, f"not an ONNX protobuf ({error})") from error
    return model


def _check_head(model: onnx.ModelProto, path: Path, limits: Limits) -> None:
    if not model.HasField("graph") or not model.graph.node:
        raise _refused(path, "it has no graph or an empty one")
    if model.ir_version < 3:
        raise _refused(path, f"ir_version {model.ir_version}, expected 3 or newer")
    domains = [_domain(entry.domain) for entry in model.opset_import]
    if len(domains) != len(set(domains)):
        raise _refused(path, f"an operator domain is imported twice: {domains}")
    if "" not in domains or any(entry.version < 1 for entry in model.opset_import):
        raise _refused(path, "it imports no opset of ai.onnx")
    foreign = sorted(set(domains) - limits.domains)
    if foreign:
        raise _refused(path, f"operator domains {foreign} are not allowed")
    if model.functions:
        raise _refused(
            path, f"{len(model.functions)} local functions; inline them (onnx.inliner.inline_local_functions)"
        )
    if model.training_info:
        raise _refused(path, "it carries training information")


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _walk(graph: Any, path: Path, limits: Limits) -> Iterator[tuple[str, Any]]:
    """Yield every node and every tensor, in subgraphs too, without recursion."""
    todo: list[tuple[Any, int]] = [(graph, 1)]
    while todo:
        current, depth = todo.pop()
        if depth > limits.depth:
            raise _refused(path, f"graphs nested deeper than {limits.depth}")
        yield from (("tensor", tensor) for tensor in current.initializer)
        yield from _sparse(current.sparse_initializer)
        for node in current.node:
            yield "node", node
            for attribute in node.attribute:
                yield from (("tensor", tensor) for tensor in ([attribute.t] if attribute.HasField("t") else []))
                yield from (("tensor", tensor) for tensor in attribute.tensors)
                yield from _sparse([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])
                yield from _sparse(attribute.sparse_tensors)
                todo.extend((g, depth + 1) for g in ([attribute.g] if attribute.HasField("g") else []))
                todo.extend((g, depth + 1) for g in attribute.graphs)


def _sparse(items: Any) -> Iterator[tuple[str, Any]]:
    for item in items:
        yield "tensor", item.values
        yield "tensor", item.indices


def _check_node(node: Any, path: Path, limits: Limits) -> None:
    if not node.op_type:
        raise _refused(path, f"node {node.name[:80]!r} has no operator")
    if _domain(node.domain) not in limits.domains:
        raise _refused(path, f"node {node.name[:80]!r} has operator domain {node.domain[:80]!r}, which is not allowed")


def _check_tensor(tensor: Any, path: Path, limits: Limits, external: set[str]) -> None:
    label = f"tensor {tensor.name[:80]!r}"
    dims = list(tensor.dims)
    if len(dims) > limits.rank or any(dim < 0 for dim in dims):
        raise _refused(path, f"{label} has dimensions {dims[:20]}")
    size_bytes = math.prod(dims) * _ITEM_BYTES.get(tensor.data_type, 1)
    if size_bytes > limits.external_size_bytes:
        raise _refused(path, f"{label} declares {size_bytes} bytes")
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        _check_external(tensor, label, size_bytes, path, external)
    elif tensor.raw_data and tensor.data_type in _ITEM_BYTES and len(tensor.raw_data) != size_bytes:
        raise _refused(path, f"{label} holds {len(tensor.raw_data)} bytes, its dimensions say {size_bytes}")


def _check_external(tensor: Any, label: str, size_bytes: int, path: Path, external: set[str]) -> None:
    keys = [entry.key for entry in tensor.external_data]
    if not set(keys) <= _EXTERNAL_KEYS or len(keys) != len(set(keys)) or "location" not in keys:
        raise _refused(path, f"{label} has external data with keys {keys[:8]}")
    fields = {entry.key: entry.value for entry in tensor.external_data}
    name = fields["location"]
    if name != Path(name).name or name in {"", ".", ".."} or "\\" in name or "\0" in name:
        raise _refused(
            path, f"{label} has external data at {name[:80]!r}; only a plain file name beside the model is allowed"
        )
    offset, length = fields.get("offset", "0"), fields.get("length", str(size_bytes))
    if (
        not (offset.isascii() and offset.isdigit() and length.isascii() and length.isdigit())
        or len(offset + length) > 36
    ):
        raise _refused(path, f"{label} has external data at offset {offset[:40]!r}, length {length[:40]!r}")
    if tensor.data_type in _ITEM_BYTES and int(length) != size_bytes:
        raise _refused(path, f"{label} has {length} bytes of external data, its dimensions say {size_bytes}")
    available = _plain_file_size(path.parent / name, path)
    if int(offset) + int(length) > available:
        raise _refused(
            path, f"{label} needs bytes {offset} to {int(offset) + int(length)} of {name!r}, which has {available}"
        )
    external.add(name)


def _plain_file_size(file: Path, path: Path) -> int:
    try:
        status = os.lstat(file)
    except (OSError, ValueError) as error:
        raise _refused(path, f"external data {file.name!r} cannot be read: {error}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise _refused(path, f"external data {file.name!r} is a link or no regular file")
    return status.st_size
