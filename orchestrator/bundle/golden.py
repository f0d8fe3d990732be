"""Golden samples: real inputs and the reference's outputs for them, in one safetensors file that travels with the model.

Tensors are called `input/<name>` and `output/<name>`; axis 0 is the sample. A replica proves itself on them before it serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import safetensors
import safetensors.numpy

from orchestrator.core.errors import GateError, IntegrityError

Array = np.ndarray[Any, Any]

GOLDEN_FILE: Final = "golden.safetensors"

_INPUT: Final = "input/"
_OUTPUT: Final = "output/"
_safetensors = cast("Any", safetensors.numpy)  # its PathLike is untyped


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs and reference outputs by name, axis 0 is the sample."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(next(iter(self.inputs.values())).shape[0])


def write_golden(path: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Golden:
    """Write the file and return what it holds; the same arrays give the same bytes.

    Raises:
        GateError: There are no samples, their numbers differ, or a dtype cannot be kept.
    """
    problem = _problem(inputs, outputs)
    if problem:
        raise GateError(f"golden samples: {problem}", hint="every input and output needs the sample as axis 0")
    tensors = {_INPUT + name: np.ascontiguousarray(array) for name, array in inputs.items()}
    tensors |= {_OUTPUT + name: np.ascontiguousarray(array) for name, array in outputs.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    _safetensors.save_file({name: tensors[name] for name in sorted(tensors)}, path)
    return Golden(dict(inputs), dict(outputs))


def read_golden(path: Path) -> Golden:
    """Read the file.

    Raises:
        IntegrityError: It is absent, damaged, or holds something else.
    """
    hint = "fetch the bundle again"
    try:
        tensors = cast("dict[str, Array]", _safetensors.load_file(path))
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise IntegrityError(f"golden samples cannot be read: {error}", place=str(path), hint=hint) from error
    inputs = {name.removeprefix(_INPUT): array for name, array in tensors.items() if name.startswith(_INPUT)}
    outputs = {name.removeprefix(_OUTPUT): array for name, array in tensors.items() if name.startswith(_OUTPUT)}
    problem = _problem(inputs, outputs)
    if len(inputs) + len(outputs) != len(tensors):
        problem = "a tensor is neither input/<name> nor output/<name>"
    if problem:
        raise IntegrityError(f"golden samples: {problem}", place=str(path), hint=hint)
    return Golden(inputs, outputs)


def _problem(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> str:
    if not inputs or not outputs:
        return "inputs or outputs are missing"
    both = [*inputs.items(), *outputs.items()]
    if any(not name for name, _ in both):
        return "a tensor has no name"
    bad = [name for name, array in both if array.dtype.kind not in "fiub"]
    if bad:
        return f"{bad} are neither numbers nor booleans"
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in both}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        return f"numbers of samples differ or are zero: {counts}"
    return ""
