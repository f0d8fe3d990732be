"""Who wrote a MindIR file, and in which dialect: MindSpore's and MindSpore Lite's do not read each other's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from orchestrator.core.errors import IntegrityError

_IR, _PRODUCER, _PRODUCER_VERSION, _MODEL_VERSION, _MIND_IR = 1, 2, 3, 5, 12
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_TEXT: Final = 256


@dataclass(frozen=True, slots=True)
class MindirStamp:
    """Head of a MindIR file.

    Attributes:
        producer: E.g. `MindSpore`; MindSpore Lite's converter writes the same word.
        version: Version of the producer, e.g. `2.0.0`; empty where it wrote none.
        ir: Text version of the IR, e.g. `0.1.1`.
        mind_ir: Number of the dialect: absent and 0 to 1 are read by Lite 2.0.0, MindSpore 2.10 writes 3.
    """

    producer: str
    version: str
    ir: str
    mind_ir: int


def read_stamp(path: Path) -> MindirStamp:
    """Read the stamp without loading the weights.

    Raises:
        IntegrityError: The file is no MindIR (encrypted ones included).
    """
    found: dict[int, bytes | int] = {}
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            found.update(_fields(file, size))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path.name} is no MindIR: {error}", place=str(path)) from error

    def text(field: int) -> str:
        value = found.get(field, b"")
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""

    if not text(_IR):
        raise IntegrityError(f"{path.name} is no MindIR: it names no IR version", place=str(path))
    number = found.get(_MIND_IR, 0)
    version = text(_PRODUCER_VERSION) or text(_MODEL_VERSION)
    return MindirStamp(text(_PRODUCER), version, text(_IR), number if isinstance(number, int) else 0)


def _fields(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes | int]]:
    while file.tell() < size:
        key = _varint(file)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            yield field, _varint(file)
        elif wire == _BYTES:
            length = _varint(file)
            if file.tell() + length > size:
                raise ValueError("a field ends beyond the file")
            if field in (_IR, _PRODUCER, _PRODUCER_VERSION, _MODEL_VERSION):
                if length > _LONGEST_TEXT:
                    raise ValueError("its head is too long")
                yield field, file.read(length)
            else:
                file.seek(length, 1)  # the graph and its weights
        elif wire in (_FIXED32, _FIXED64):
            file.seek(4 if wire == _FIXED32 else 8, 1)
        else:
            raise ValueError(f"wire type {wire}")


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends in the middle of a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number is too long")
