"""The bytes of big tensors: taken out of a graph that only its shape matters of, or read in from files beside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import TensorProto

from orchestrator.graph.tensor_rules import external_entry, refused, tensor_size_bytes

NO_FILE: Final = "weights"
"""Where a tensor without its bytes says that they are; an empty file of this name satisfies `onnx.checker`."""

_KEPT_SIZE_BYTES: Final = 4096
_KEPT_TOTAL_BYTES: Final = 64 << 20
_DATA: Final = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def all_tensors(model: onnx.ModelProto) -> Iterator[Any]:
    """Yield every dense tensor: initializers and attributes, of subgraphs too; sparse ones are left out."""
    todo: list[Any] = [model.graph]
    while todo:
        graph = todo.pop()
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    todo.append(attribute.g)
                todo.extend(attribute.graphs)


def take_out(model: onnx.ModelProto, folder: Path) -> None:
    """Drop the bytes of tensors above 4 KiB, in place; small external ones are read in, since shapes depend on them.

    Args:
        model: Already walked.
        folder: Where its external files are.
    """
    kept = 0
    for tensor in all_tensors(model):
        size_bytes = tensor_size_bytes(tensor)
        small = size_bytes <= _KEPT_SIZE_BYTES and kept + size_bytes <= _KEPT_TOTAL_BYTES
        outside = tensor.data_location == TensorProto.EXTERNAL or bool(tensor.external_data)
        if small:
            kept += size_bytes
            if outside:
                _fill(tensor, folder)
        elif tensor.data_type != TensorProto.STRING:  # which has no external form
            for field in _DATA:
                tensor.ClearField(field)
            del tensor.external_data[:]
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=NO_FILE)


def read_in(model: onnx.ModelProto, folder: Path) -> None:
    """Read all external data into the model, in place, one tensor at a time.

    Args:
        model: Already walked.
        folder: Where its external files are.

    Raises:
        GateError: A file is not what the walk has seen.
    """
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            _fill(tensor, folder)
    for graph_tensor in _sparse_tensors(model):
        if graph_tensor.data_location == TensorProto.EXTERNAL or graph_tensor.external_data:
            _fill(graph_tensor, folder)


def _sparse_tensors(model: onnx.ModelProto) -> Iterator[Any]:
    todo: list[Any] = [model.graph]
    while todo:
        graph = todo.pop()
        items = list(graph.sparse_initializer)
        for node in graph.node:
            for attribute in node.attribute:
                items += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
                items += attribute.sparse_tensors
                todo += [attribute.g] if attribute.HasField("g") else []
                todo += attribute.graphs
        for item in items:
            yield from (item.values, item.indices)


def _fill(tensor: Any, folder: Path) -> None:
    label = f"tensor {tensor.name[:80]!r}"
    name, offset, length = external_entry(tensor, label, tensor_size_bytes(tensor), folder / "model")
    data = _read(folder, name, offset, length)
    if len(data) != length:
        raise refused(folder / name, f"{label} needs {length} bytes at {offset}, got {len(data)}")
    tensor.raw_data = data
    del tensor.external_data[:]
    tensor.data_location = TensorProto.DEFAULT


def _read(folder: Path, name: str, offset: int, length: int) -> bytes:
    """Read a part of a plain file of the folder; contained by how it is opened, not by how its name looks."""
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
        finally:
            os.close(place)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise refused(folder / name, "external data is a link or no regular file")
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise refused(folder / name, f"external data cannot be read: {error}") from error
