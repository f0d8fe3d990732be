"""Golden samples of the stages around the model: what a client sends, what the model gets and gives, what the client gets.

One safetensors file beside the model's own golden samples. Tensors are called `<part>/<name>`, axis 0 is the row; text and
bytes are kept as the protocol carries them (`<part>/<name>` uint8) with their shape (`<part>/<name>/shape` int64).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import safetensors
import safetensors.numpy

from orchestrator.core.errors import IntegrityError

Array = np.ndarray[Any, Any]
SERVE_GOLDEN: Final = "serve-golden.safetensors"
_SHAPE: Final = "/shape"
_safetensors = cast("Any", safetensors.numpy)  # its PathLike is untyped


@dataclass(frozen=True, slots=True)
class ServeGolden:
    """Arrays by name; axis 0 is the row. Text arrays hold bytes objects (UTF-8) once they were read.

    Attributes:
        asked: What clients send.
        inputs: What the model gets.
        outputs: What the trained model gives.
        answers: What clients get.
    """

    asked: Mapping[str, Array]
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    answers: Mapping[str, Array]

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(next(iter(self.asked.values())).shape[0])


def write_serve_golden(path: Path, golden: ServeGolden) -> None:
    """Write the file; the same arrays give the same bytes."""
    tensors: dict[str, Array] = {}
    for part in fields(golden):
        for name, array in cast("Mapping[str, Array]", getattr(golden, part.name)).items():
            key = f"{part.name}/{name}"
            if array.dtype.kind in "OSU":
                tensors[key] = np.frombuffer(_joined(array), np.uint8)
                tensors[key + _SHAPE] = np.array(array.shape, np.int64)
            else:
                tensors[key] = np.ascontiguousarray(array)
    path.parent.mkdir(parents=True, exist_ok=True)
    _safetensors.save_file({name: tensors[name] for name in sorted(tensors)}, path)


def read_serve_golden(path: Path) -> ServeGolden:
    """Read the file.

    Raises:
        IntegrityError: It is absent, damaged, or holds something else.
    """
    parts: dict[str, dict[str, Array]] = {part.name: {} for part in fields(ServeGolden)}
    try:
        tensors = cast("dict[str, Array]", _safetensors.load_file(path))
        for key, array in tensors.items():
            part, _, name = key.partition("/")
            if not key.endswith(_SHAPE):
                shape = tensors.get(key + _SHAPE)
                parts[part][name] = array if shape is None else _split(array.tobytes(), shape.tolist())
        golden = ServeGolden(**parts)
        counts = {array.shape[0] for group in parts.values() for array in group.values()}
        if len(counts) != 1 or not all(parts.values()):
            raise ValueError(f"parts {sorted(name for name in parts if parts[name])} with {sorted(counts)} rows")
    except (OSError, ValueError, KeyError, IndexError, safetensors.SafetensorError) as error:
        raise IntegrityError(
            f"the stages' golden samples cannot be read: {error}", place=str(path), hint="fetch the bundle again"
        ) from error
    return golden


def _joined(array: Array) -> bytes:
    items = [item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel().tolist()]
    return b"".join(len(item).to_bytes(4, "little") + item for item in items)


def _split(data: bytes, shape: list[int]) -> Array:
    items: list[bytes] = []
    place = 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "little")
        items.append(data[place + 4 : place + 4 + size])
        place += 4 + size
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found.reshape(shape)
