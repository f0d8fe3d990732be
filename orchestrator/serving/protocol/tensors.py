"""Tensors as they travel: an OIP datatype, a shape and raw little-endian bytes; and the signature that they must fit."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

Buffer = bytes | bytearray | memoryview
Dim = int | str
"""A fixed size, or the name of a dynamic one; `""` is a dynamic dimension without a name."""

MAX_RANK: Final = 8
"""Ascend's operators take at most eight dimensions."""

ITEM_BYTES: Final[Mapping[str, int]] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": 0,
}
"""Bytes of one element; 0 = each element carries its own length (u32 little-endian, then the bytes)."""

_MAX_ELEMENTS: Final = 1 << 59
"""Of eight bytes each: numpy multiplies all sizes but the zeros, and counts bytes in 63 bits."""

_NUMPY: Final[Mapping[str, str]] = {
    "BOOL": "?",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_DTYPES: Final = {name: np.dtype(code) for name, code in {**_NUMPY, "BF16": "<u2"}.items()}
_OIP: Final = {np.dtype(code).name: name for name, code in _NUMPY.items()}
_U32: Final = struct.Struct("<I")


class Tensor(NamedTuple):
    """One tensor.

    Attributes:
        name: The model's name for it.
        datatype: An OIP datatype, a key of `ITEM_BYTES`.
        shape: Sizes; row-major.
        data: Raw little-endian bytes, exactly as many as datatype and shape need.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer

    def array(self) -> npt.NDArray[np.generic]:
        """Return the values without a copy; BYTES become an object array of bytes, BF16 the bit patterns (uint16)."""
        return to_array(self.datatype, self.shape, self.data)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model wants or gives: name, OIP datatype and dimensions."""

    name: str
    datatype: str
    dims: tuple[Dim, ...]

    @property
    def shape(self) -> list[int]:
        """The dimensions as OIP writes them: -1 for a dynamic one."""
        return [dim if isinstance(dim, int) else -1 for dim in self.dims]

    def to_json(self) -> dict[str, object]:
        """Return the form that the link carries."""
        return {"name": self.name, "datatype": self.datatype, "dims": list(self.dims)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> TensorSpec:
        """Parse the form that the link carries.

        Raises:
            ValueError: A field is missing or of the wrong kind.
        """
        name, datatype, dims = data.get("name"), data.get("datatype"), data.get("dims")
        if not isinstance(name, str) or not name or not isinstance(datatype, str) or datatype not in ITEM_BYTES:
            raise ValueError(f"bad tensor {str(dict(data))[:200]}")
        if not isinstance(dims, list) or len(cast("list[object]", dims)) > MAX_RANK:
            raise ValueError(f"tensor {name} needs at most {MAX_RANK} dimensions")
        return cls(name, datatype, tuple(_dim(dim) for dim in cast("list[object]", dims)))


def _dim(value: object) -> Dim:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError(f"bad dimension {value!r}")


def count(shape: Sequence[int]) -> int:
    """Return the number of elements, in Python integers: it cannot overflow."""
    total = 1
    for size in shape:
        total *= size
    return total


def to_array(datatype: str, shape: Sequence[int], data: Buffer) -> npt.NDArray[np.generic]:
    """View raw bytes as an array; the caller has checked the sizes."""
    if datatype == "BYTES":
        items = np.empty(count(shape), dtype=object)
        items[:] = split_bytes(data)
        return cast("npt.NDArray[np.generic]", items.reshape(tuple(shape)))
    return flat_array(datatype, data).reshape(tuple(shape))


def flat_array(datatype: str, data: Buffer) -> npt.NDArray[np.generic]:
    """View the bytes of a datatype of fixed size as a flat array; BF16 as bit patterns (uint16)."""
    return np.frombuffer(data, _DTYPES[datatype])


def from_array(name: str, array: npt.NDArray[np.generic]) -> Tensor:
    """Turn an array into a tensor; object and text arrays become BYTES.

    Raises:
        ValueError: The dtype has no OIP name.
    """
    if array.dtype.kind in "OSU":
        return Tensor(name, "BYTES", array.shape, join_bytes(_as_bytes(item) for item in array.ravel().tolist()))
    datatype = _OIP.get(array.dtype.name)
    if datatype is None:
        raise ValueError(f"tensor {name!r} has dtype {array.dtype}, which the protocol cannot carry")
    little = np.ascontiguousarray(array, dtype=_NUMPY[datatype])
    return Tensor(name, datatype, array.shape, little.reshape(-1).view(np.uint8).data if little.size else b"")


def _as_bytes(item: object) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode()
    raise ValueError(f"a BYTES element must be bytes or text, not {type(item).__name__}")


def numpy_dtype(datatype: str) -> np.dtype[np.generic]:
    """Return the little-endian numpy dtype of a fixed-size OIP datatype other than BF16."""
    return _DTYPES[datatype]


def join_bytes(items: object) -> bytes:
    """Encode BYTES elements: u32 little-endian length, then the bytes, for each."""
    parts: list[bytes] = []
    for item in cast("Sequence[bytes]", items):
        parts.append(_U32.pack(len(item)))
        parts.append(item)
    return b"".join(parts)


def split_bytes(data: Buffer) -> list[bytes]:
    """Decode BYTES elements.

    Raises:
        ValueError: A length runs past the end.
    """
    view, found, place, end = memoryview(data), list[bytes](), 0, len(data)
    while place < end:
        stop = _element_end(view, place, end)
        found.append(bytes(view[place + 4 : stop]))
        place = stop
    return found


def bytes_offsets(data: Buffer) -> list[int]:
    """Return where each BYTES element begins, and last the end of all.

    Raises:
        ValueError: A length runs past the end.
    """
    view, found, place, end = memoryview(data), [0], 0, len(data)
    while place < end:
        place = _element_end(view, place, end)
        found.append(place)
    return found


def _element_end(view: memoryview, place: int, end: int) -> int:
    if end - place < 4:
        raise ValueError(f"a BYTES element at byte {place} has no room for its length")
    size = _U32.unpack_from(view, place)[0]
    if size > end - place - 4:
        raise ValueError(f"a BYTES element at byte {place} claims {size} bytes, {end - place - 4} are left")
    return place + 4 + size


def check_size(datatype: str, shape: Sequence[int], data: Buffer) -> None:
    """Check that `data` holds exactly the tensor.

    Raises:
        ValueError: Another number of bytes or elements, or sizes that no array can have.
    """
    elements = count(shape)
    if not elements and count([size or 1 for size in shape]) > _MAX_ELEMENTS:
        raise ValueError(f"has shape {list(shape)}, which no array can have")
    if datatype == "BYTES":
        found = len(bytes_offsets(data)) - 1
        if found != elements:
            raise ValueError(f"holds {found} elements, shape {list(shape)} needs {elements}")
    elif len(data) != elements * ITEM_BYTES[datatype]:
        needed = elements * ITEM_BYTES[datatype]
        raise ValueError(f"holds {len(data)} bytes, shape {list(shape)} of {datatype} needs {needed}")
