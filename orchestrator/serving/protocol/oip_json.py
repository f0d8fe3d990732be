"""JSON data of one tensor to raw bytes and back, exact for every datatype that JSON can carry."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import orjson

from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.tensors import (
    Buffer,
    Tensor,
    count,
    flat_array,
    join_bytes,
    numpy_dtype,
    split_bytes,
)

_BINARY_ONLY: Final = ("FP16", "BF16")
_PACKED: Final[Mapping[str, tuple[type, str]]] = {
    "INT8": (int, "b"),
    "INT16": (int, "h"),
    "INT32": (int, "i"),
    "INT64": (int, "q"),
    "UINT8": (int, "B"),
    "UINT16": (int, "H"),
    "UINT32": (int, "I"),
    "FP32": (float, "f"),
    "FP64": (float, "d"),
}
"""What the first of a flat list must be, and the code by which `struct` packs the list as numpy would convert it."""


def decode(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Buffer:
    """Turn a JSON list, flat or nested as `shape`, into raw little-endian bytes.

    Raises:
        RequestError: Wrong count, nesting, kind or range of values.
    """
    if datatype in _BINARY_ONLY:
        raise RequestError(f"input {name!r}: {datatype} must be sent as binary data")
    if not isinstance(data, list):
        raise RequestError(f"input {name!r}: data must be a list")
    if datatype == "BYTES":
        return _decode_text(name, shape, cast("list[object]", data))
    packed = _pack(datatype, shape, cast("list[object]", data))
    if packed is not None:
        return packed
    try:
        array = cast("npt.NDArray[np.generic]", np.asarray(cast("list[object]", data)))
    except (ValueError, OverflowError) as error:
        raise RequestError(f"input {name!r}: data is ragged or out of range") from error
    _check_shape(name, shape, array.shape, array.size)
    if array.size == 0:
        return b""
    return _convert(name, datatype, array, cast("list[object]", data))


def _pack(datatype: str, shape: tuple[int, ...], data: list[object]) -> bytes | None:
    """Return the bytes of a flat list of plain numbers, several times faster than by numpy; None where that must decide."""
    first, code = _PACKED.get(datatype, (None, ""))
    if len(data) != count(shape) or not data or type(data[0]) is not first:
        return None
    try:
        return struct.pack(f"<{len(data)}{code}", *data)
    except (struct.error, OverflowError):
        return None


def _check_shape(name: str, shape: tuple[int, ...], found: tuple[int, ...], size: int) -> None:
    if size != count(shape):
        raise RequestError(f"input {name!r}: data has {size} elements, shape {list(shape)} needs {count(shape)}")
    if size and len(found) != 1 and found != shape:
        raise RequestError(f"input {name!r}: data is nested as {list(found)}, shape is {list(shape)}")


def _convert(name: str, datatype: str, array: npt.NDArray[np.generic], data: list[object]) -> bytes:
    dtype, kind = numpy_dtype(datatype), array.dtype.kind
    if datatype == "BOOL":
        if kind != "b":
            raise RequestError(f"input {name!r}: BOOL data must be true or false")
        return array.tobytes()
    if dtype.kind == "f":
        if kind not in "fiu":
            raise RequestError(f"input {name!r}: {datatype} data must be numbers")
        with np.errstate(over="ignore"):
            converted = array.astype(dtype)
        if not np.isfinite(cast("npt.NDArray[np.floating]", converted)).all():
            raise RequestError(f"input {name!r}: a number is out of the range of {datatype}")
        return converted.tobytes()
    if datatype == "UINT64" and kind not in "iu":
        array = _exact_uint64(name, data)
    elif kind not in "iu":
        raise RequestError(f"input {name!r}: {datatype} data must be whole numbers in range")
    limits = np.iinfo(cast("np.dtype[np.integer]", dtype))
    if int(cast("int", array.min())) < limits.min or int(cast("int", array.max())) > limits.max:
        raise RequestError(f"input {name!r}: a number is out of the range of {datatype}")
    return array.astype(dtype).tobytes()


def _exact_uint64(name: str, data: list[object]) -> npt.NDArray[np.generic]:
    """Numpy joins small and large whole numbers to float64, which is not exact above 2**53."""
    items = np.asarray(data, dtype=object).reshape(-1).tolist()
    if not all(type(item) is int and 0 <= item < 1 << 64 for item in items):
        raise RequestError(f"input {name!r}: UINT64 data must be whole numbers in range")
    return cast("npt.NDArray[np.generic]", np.array(items, dtype=np.uint64))


def _decode_text(name: str, shape: tuple[int, ...], data: list[object]) -> bytes:
    items, nesting = data, [len(data)]
    while items and isinstance(items[0], list):
        rows = [cast("list[object]", row) for row in items if isinstance(row, list)]
        width = len(rows[0])
        if len(rows) != len(items) or any(len(row) != width for row in rows) or len(nesting) >= len(shape):
            raise RequestError(f"input {name!r}: data is ragged or nested deeper than its shape")
        nesting.append(width)
        items = [item for row in rows for item in row]
    if not all(isinstance(item, str) for item in items):
        raise RequestError(f"input {name!r}: BYTES data must be texts")
    _check_shape(name, shape, tuple(nesting), len(items))
    return join_bytes([cast("str", item).encode() for item in items])


def encode(tensor: Tensor) -> bytes:
    """Return the values, flat, as JSON.

    Raises:
        RequestError: JSON cannot carry them.
    """
    if tensor.datatype in _BINARY_ONLY:
        raise RequestError(f"output {tensor.name!r} is {tensor.datatype}, which JSON cannot carry; ask for binary data")
    if tensor.datatype == "BYTES":
        try:
            return orjson.dumps([item.decode() for item in split_bytes(tensor.data)])
        except UnicodeDecodeError as error:
            raise RequestError(f"output {tensor.name!r} is no UTF-8 text; ask for binary data") from error
    text = orjson.dumps(flat_array(tensor.datatype, tensor.data), option=orjson.OPT_SERIALIZE_NUMPY)
    if b"n" in text:
        # The only word with an n is null, which stands for NaN and infinity: they must not pass as missing numbers.
        raise RequestError(
            f"output {tensor.name!r} holds NaN or infinity, which JSON cannot carry; ask for binary data",
            status=500,
            kind="non_finite",
        )
    return text
