"""What a tensor in an ONNX file may be, and where its bytes may lie: in the file, or in a plain file beside it."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any, Final

from onnx import TensorProto

from orchestrator.core.errors import GateError
from orchestrator.graph.limits import Limits

_EXTERNAL_KEYS: Final = frozenset({"location", "offset", "length"})
_LONGEST_NUMBER: Final = 18
_BITS: Final[dict[int, int]] = {
    TensorProto.FLOAT: 32, TensorProto.UINT8: 8, TensorProto.INT8: 8, TensorProto.UINT16: 16, TensorProto.INT16: 16,
    TensorProto.INT32: 32, TensorProto.INT64: 64, TensorProto.BOOL: 8, TensorProto.FLOAT16: 16, TensorProto.DOUBLE: 64,
    TensorProto.UINT32: 32, TensorProto.UINT64: 64, TensorProto.COMPLEX64: 64, TensorProto.COMPLEX128: 128,
    TensorProto.BFLOAT16: 16, TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT8E4M3FNUZ: 8, TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8, TensorProto.UINT4: 4, TensorProto.INT4: 4, TensorProto.FLOAT4E2M1: 4,
    TensorProto.FLOAT8E8M0: 8, TensorProto.UINT2: 2, TensorProto.INT2: 2,
}  # fmt: skip
_FIELDS: Final[dict[int, tuple[str, int]]] = {
    TensorProto.FLOAT: ("float_data", 1),
    TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1),
    TensorProto.UINT32: ("uint64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
    TensorProto.STRING: ("string_data", 1),
}
"""Element type -> the typed field that holds it and its entries per element; all others lie in `int32_data`."""
_TYPED: Final = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def refused(path: Path, what: str) -> GateError:
    """Return the error of a file that is damaged or hostile."""
    return GateError(f"the ONNX file is refused: {what}", place=path.name, hint="export the model again")


def tensor_size_bytes(tensor: Any) -> int:
    """Return what the dimensions and the element type say; texts count as one byte each."""
    return (math.prod(tensor.dims) * _BITS.get(tensor.data_type, 8) + 7) // 8


class TensorRules:
    """Checks tensors one by one, and what they are together in `finish`.

    Attributes:
        files: Names of the external files so far.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path, self._limits = path, limits
        self._count = self._declared = 0
        self._ranges: dict[str, set[tuple[int, int]]] = {}
        self._sizes: dict[str, int] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the external files so far."""
        return tuple(self._ranges)

    def expect(self, count: int) -> None:
        """Refuse early, before a million of them is looked at one by one.

        Raises:
            GateError: So many more are too many.
        """
        if self._count + count > self._limits.tensors:
            raise refused(self._path, f"more than {self._limits.tensors} tensors")

    def check(self, tensor: Any) -> None:
        """Check one tensor.

        Raises:
            GateError: It is damaged or hostile.
        """
        if not isinstance(tensor.name, str) or len(tensor.name) > self._limits.name_length:
            raise refused(self._path, f"a tensor's name is no text or too long: {tensor.name[:80]!r}")
        label = f"tensor {tensor.name[:80]!r}"
        self.expect(1)
        self._count += 1
        if tensor.data_type not in _BITS and tensor.data_type != TensorProto.STRING:
            raise refused(self._path, f"{label} has unknown element type {tensor.data_type}")
        self._dims(tensor.dims, label)
        size_bytes = tensor_size_bytes(tensor)
        self._declared += size_bytes
        if self._declared > self._limits.external_size_bytes:
            raise refused(self._path, f"{label} declares {size_bytes} bytes, {self._declared} with those before it")
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            self._external(tensor, label, size_bytes)
        else:
            self._inline(tensor, label, size_bytes)

    def check_sparse(self, sparse: Any) -> None:
        """Check both tensors of a sparse one, and its own dimensions.

        Raises:
            GateError: It is damaged or hostile.
        """
        self._dims(sparse.dims, f"sparse tensor {sparse.values.name[:80]!r}")
        self.check(sparse.values)
        self.check(sparse.indices)

    def finish(self) -> None:
        """Check that no two tensors share a part of an external file; sharing one range whole is fine.

        Raises:
            GateError: Two overlap.
        """
        for name, ranges in self._ranges.items():
            end = 0
            for start, stop in sorted(ranges):
                if start < end:
                    raise refused(self._path, f"tensors overlap in {name!r} at byte {start}")
                end = stop

    def _dims(self, dims: Any, label: str) -> None:
        if len(dims) > self._limits.rank or any(dim < 0 for dim in dims):
            raise refused(self._path, f"{label} has dimensions {list(dims[:20])}")
        if math.prod(dims) > self._limits.elements:
            raise refused(self._path, f"{label} declares {math.prod(dims)} elements, dimensions {list(dims[:20])}")

    def _inline(self, tensor: Any, label: str, size_bytes: int) -> None:
        field, per_element = _FIELDS.get(tensor.data_type, ("int32_data", 1))
        lengths = {name: len(getattr(tensor, name)) for name in _TYPED}
        strays = [name for name, length in lengths.items() if length and name != field]
        if tensor.HasField("raw_data") and tensor.data_type != TensorProto.STRING:
            held = len(tensor.raw_data)
            strays += [field] if lengths[field] else []
        else:
            entries = math.prod(tensor.dims) * per_element
            if field == "int32_data" and _BITS[tensor.data_type] < 8:
                entries = size_bytes  # packed into bytes
            held = size_bytes if lengths[field] == entries else lengths[field]
            strays += ["raw_data"] if tensor.HasField("raw_data") else []
            if lengths[field] != entries:
                raise refused(
                    self._path, f"{label} holds {lengths[field]} values in {field}, its dimensions say {entries}"
                )
        if strays:
            raise refused(self._path, f"{label} also holds data in {', '.join(strays)}")
        if held != size_bytes:
            raise refused(self._path, f"{label} holds {held} bytes, its dimensions say {size_bytes}")

    def _external(self, tensor: Any, label: str, size_bytes: int) -> None:
        if tensor.raw_data or any(len(getattr(tensor, field)) for field in _TYPED):
            raise refused(self._path, f"{label} holds data in the file and outside it")
        name, offset, length = external_entry(tensor, label, size_bytes, self._path)
        if length != size_bytes or tensor.data_type == TensorProto.STRING:
            raise refused(self._path, f"{label} has {length} bytes of external data, its dimensions say {size_bytes}")
        if name not in self._sizes:
            self._sizes[name] = _plain_file_size(self._path.parent / name, self._path)
        available = self._sizes[name]
        if offset + length > available:
            raise refused(
                self._path, f"{label} needs bytes {offset} to {offset + length} of {name!r}, which has {available}"
            )
        ranges = self._ranges.setdefault(name, set())
        if length:
            ranges.add((offset, offset + length))


def external_entry(tensor: Any, label: str, size_bytes: int, path: Path) -> tuple[str, int, int]:
    """Return file name, offset and length of a tensor's external data.

    Raises:
        GateError: The name is not that of a file beside the model, or something else is odd.
    """
    keys = [entry.key for entry in tensor.external_data]
    if not set(keys) <= _EXTERNAL_KEYS or len(keys) != len(set(keys)) or "location" not in keys:
        raise refused(path, f"{label} has external data with keys {[key[:40] for key in keys[:8]]}")
    fields = {entry.key: entry.value for entry in tensor.external_data}
    if not all(isinstance(value, str) for value in fields.values()):
        raise refused(path, f"{label} has external data at a place that is not UTF-8")
    name = fields["location"]
    if name != Path(name).name or name in {"", ".", ".."} or "\\" in name or "\0" in name:
        raise refused(
            path, f"{label} has external data at {name[:80]!r}; only a plain file name beside the model is allowed"
        )
    offset, length = fields.get("offset", "0"), fields.get("length", str(size_bytes))
    if not all(text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER for text in (offset, length)):
        raise refused(path, f"{label} has external data at offset {offset[:40]!r}, length {length[:40]!r}")
    return name, int(offset), int(length)


def _plain_file_size(file: Path, path: Path) -> int:
    try:
        status = os.lstat(file)
    except FileNotFoundError as error:
        raise GateError(
            f"the ONNX file is refused: external data {file.name[:80]!r} cannot be read: there is no such file",
            place=path.name, hint=f"put {file.name[:80]} (its weights) beside {path.name}, as the export wrote it",
        ) from error  # fmt: skip
    except (OSError, ValueError) as error:
        raise refused(path, f"external data {file.name[:80]!r} cannot be read: {error}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise refused(path, f"external data {file.name[:80]!r} is a link or no regular file")
    return status.st_size
