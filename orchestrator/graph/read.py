"""The only door through which ONNX files come in: checked in a child process, then read.

Repeated looks at one file cost nothing: what was found is kept by real path, size, time and inode, those of its external
files included.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from orchestrator.core.errors import GateError, IntegrityError
from orchestrator.core.files import write_json
from orchestrator.graph.graph_info import Exporter, GraphInfo
from orchestrator.graph.limits import Limits
from orchestrator.graph.sandbox import check_in_child
from orchestrator.graph.walk import load_checked
from orchestrator.graph.weights import read_in

__all__ = [
    "MODEL_ONNX",
    "ONNX_JSON",
    "Exporter",
    "GraphInfo",
    "Limits",
    "inferred",
    "inspect_onnx",
    "load_model",
    "model_file",
    "write_onnx_json",
]

ONNX_JSON: Final = "onnx.json"
MODEL_ONNX: Final = "model.onnx"

_Stamp = tuple[str, int, int, int]
_REMEMBERED: Final = 16


@dataclass(frozen=True, slots=True)
class _Seen:
    info: GraphInfo
    graph: bytes
    external: tuple[_Stamp, ...]


_seen: Final[OrderedDict[tuple[_Stamp, Limits], _Seen]] = OrderedDict()
_lock: Final = threading.Lock()


def inspect_onnx(path: Path, *, limits: Limits | None = None) -> GraphInfo:
    """Check the file in a child process (our walk, `onnx.checker` in full, shape inference), and say what it is.

    Raises:
        GateError: The file is damaged, hostile, or has inputs or outputs that are no tensors.
    """
    return dataclasses.replace(_look(path, limits or Limits()).info, path=path)


def load_model(path: Path, *, weights: bool = True, limits: Limits | None = None) -> onnx.ModelProto:
    """Return the model, checked as `inspect_onnx` does; the caller's own, free to change.

    Args:
        path: The ONNX file.
        weights: Read external data into it; without, tensors that lie outside keep saying so and nothing is read.
        limits: Caps; the default ones when not given.

    Raises:
        GateError: The file is refused.
    """
    limits = limits or Limits()
    _look(path, limits)
    model, _ = load_checked(path, limits)
    if weights:
        read_in(model, path.parent)
    return model


def inferred(path: Path, *, limits: Limits | None = None) -> onnx.ModelProto:
    """Return the graph with a type and shape for every value where one is known; the caller's own.

    Tensors above 4 KiB have dimensions and element type but no bytes: they say that their data is external.

    Raises:
        GateError: The file is refused.
    """
    model = onnx.ModelProto()
    model.ParseFromString(_look(path, limits or Limits()).graph)
    return model


def _look(path: Path, limits: Limits) -> _Seen:
    key = (_stamp(path), limits)
    with _lock:
        found = _seen.get(key)
    if found is not None and _external(path, found.info) == found.external:
        return found
    answer = check_in_child(path, limits)
    info = GraphInfo.from_text(path, answer.info)
    found = _Seen(info, answer.graph, _external(path, info))
    if _stamp(path) != key[0]:
        raise GateError("the ONNX file changed while it was read", place=path.name, hint="wait until it is written")
    with _lock:
        _seen[key] = found
        _seen.move_to_end(key)
        while len(_seen) > _REMEMBERED:
            _seen.popitem(last=False)
    return found


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
        return (os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino)
    except (OSError, ValueError) as error:
        raise GateError(f"the ONNX file cannot be read: {error}", place=path.name) from error


def _external(path: Path, info: GraphInfo) -> tuple[_Stamp, ...]:
    return tuple(_stamp(path.parent / name) for name in info.external_files)


def write_onnx_json(folder: Path, info: GraphInfo, exporter: Exporter) -> Path:
    """Write `onnx.json` beside the model and return its path."""
    path = folder / ONNX_JSON
    write_json(path, info.to_json(exporter))
    return path


def model_file(folder: Path) -> Path:
    """Return the model of an `onnx` artifact's folder.

    Raises:
        IntegrityError: The folder has none.
    """
    path = folder / MODEL_ONNX
    if not path.is_file():
        raise IntegrityError(f"no {MODEL_ONNX} in the artifact", place=str(folder), hint="make the artifact again")
    return path
