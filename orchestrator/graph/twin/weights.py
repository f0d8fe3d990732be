"""Weights of a twin: rounded once, tensor by tensor, in memory or from file to file, so that they are never held twice."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any, Final, Protocol, cast

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from orchestrator.ascend.precision import Low
from orchestrator.core.errors import GateError
from orchestrator.graph.twin.rounding import round_weight

_INLINE_BYTES: Final = 1024
"""Up to here data come into the model itself: runtimes do not read shapes and axes from external files."""

_ALIGNMENT: Final = 4096  # so that runtimes can map each tensor
_CHUNK_ITEMS: Final = 1 << 20
_numpy_helper = cast("Any", numpy_helper)  # partly untyped


class Weights(Protocol):
    """Where the weights of the twin come from and go to."""

    def as_is(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Return the tensor for the twin, unrounded."""
        ...

    def rounded(self, tensor: onnx.TensorProto, name: str) -> onnx.TensorProto | None:
        """Return it rounded, called `name`; None leaves the rounding to the graph."""
        ...


class InMemory:
    """Weights that the model carries itself. Those that were left in external files are rounded by the graph."""

    def __init__(self, low: Low, *, saturating: bool) -> None:
        self._low: Low = low
        self._saturating = saturating

    def as_is(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Return the tensor itself."""
        return tensor

    def rounded(self, tensor: onnx.TensorProto, name: str) -> onnx.TensorProto | None:
        """Return a rounded copy; None where the data are in an external file."""
        if tensor.data_location == TensorProto.EXTERNAL:
            return None
        values = _numpy_helper.to_array(tensor)
        return _numpy_helper.from_array(round_weight(values, self._low, saturating=self._saturating), name)


class FileToFile(InMemory):
    """Weights in external files beside the source, written into one external file of the twin, piece by piece."""

    def __init__(self, folder: Path, name: str, out: IO[bytes], low: Low, *, saturating: bool) -> None:
        super().__init__(low, saturating=saturating)
        self._folder = folder
        self._name = name
        self._out = out

    def as_is(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Return the tensor, its external data copied to the twin's file."""
        tensor = self._inlined(tensor)
        if tensor.data_location != TensorProto.EXTERNAL:
            return tensor
        return self._copy(tensor, tensor.name, rounding=False)

    def rounded(self, tensor: onnx.TensorProto, name: str) -> onnx.TensorProto | None:
        """Return the tensor rounded, in the twin's file where its data are external."""
        tensor = self._inlined(tensor)
        if tensor.data_location != TensorProto.EXTERNAL:
            return super().rounded(tensor, name)
        return self._copy(tensor, name, rounding=True)

    def _inlined(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Return small external tensors with their data, others as they are."""
        if tensor.data_location != TensorProto.EXTERNAL:
            return tensor
        path, offset, size_bytes = self._span(tensor)
        if size_bytes > _INLINE_BYTES:
            return tensor
        with path.open("rb") as source:
            source.seek(offset)
            data = source.read(size_bytes)
        return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=data)

    def _span(self, tensor: onnx.TensorProto) -> tuple[Path, int, int]:
        """Return the file, the offset and the number of bytes of an external tensor."""
        fields = {entry.key: entry.value for entry in tensor.external_data}
        path, offset = self._folder / fields["location"], int(fields.get("offset", 0))
        return path, offset, int(fields["length"]) if "length" in fields else path.stat().st_size - offset

    def _copy(self, tensor: onnx.TensorProto, name: str, *, rounding: bool) -> onnx.TensorProto:
        path, offset, size_bytes = self._span(tensor)
        start = math.ceil(self._out.tell() / _ALIGNMENT) * _ALIGNMENT
        self._out.write(b"\0" * (start - self._out.tell()))
        with path.open("rb") as source:
            source.seek(offset)
            self._stream(source, size_bytes, rounding=rounding)
        made = onnx.TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
        made.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._name), ("offset", start), ("length", size_bytes)):
            entry = made.external_data.add()
            entry.key, entry.value = key, str(value)
        return made

    def _stream(self, source: IO[bytes], size_bytes: int, *, rounding: bool) -> None:
        left = size_bytes
        while left:
            piece = source.read(min(left, 4 * _CHUNK_ITEMS))
            if not piece:
                raise GateError(f"the external data end {left} bytes early", hint="export the model again")
            left -= len(piece)
            if rounding:
                values = np.frombuffer(piece, "<f4").astype(np.float32)
                piece = round_weight(values, self._low, saturating=self._saturating).astype("<f4").tobytes()
            self._out.write(piece)
