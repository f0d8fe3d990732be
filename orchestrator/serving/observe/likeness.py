"""How alike the answers of two generations to one request are. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from orchestrator.serving.protocol.tensors import Tensor

FLOATS: Final = frozenset({"FP16", "BF16", "FP32", "FP64"})
_MOST_CLASSES: Final = 1024
_SAMPLED_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class Likeness:
    """One answer of a canary beside the stable generation's.

    Attributes:
        agree: All outputs are alike within the tolerances; what are no floats must be equal.
        misfit: They have other names, kinds or shapes: nothing was compared.
        same_top: Whether all rows have their highest score at the same place, in the first output of floats that has scores (a last
            axis of more than one); None where there is no such output.
        nonfinite: The canary has an infinity or NaN where the stable one has a number.
        max_abs: Largest difference of two numbers.
    """

    agree: bool
    misfit: bool = False
    same_top: bool | None = None
    nonfinite: bool = False
    max_abs: float = 0.0


def likeness(stable: Sequence[Tensor], canary: Sequence[Tensor], rtol: float, atol: float) -> Likeness:
    """Compare two answers: floats are alike where `|canary - stable| <= atol + rtol * |stable|`; so are infinities and NaN where
    both have the same.
    """
    others = {tensor.name: tensor for tensor in canary}
    if len(stable) != len(canary) or not all(_fits(tensor, others.get(tensor.name)) for tensor in stable):
        return Likeness(False, misfit=True)
    agree, nonfinite, max_abs, same_top = True, False, 0.0, None
    with np.errstate(all="ignore"):
        for tensor in stable:
            other = others[tensor.name]
            if tensor.datatype not in FLOATS:
                agree = agree and tensor.data == other.data
                continue
            left, right = float_values(tensor), float_values(other)
            alike, lost, largest = _compare(left, right, rtol, atol)
            agree, nonfinite, max_abs = agree and alike, nonfinite or lost, max(max_abs, largest)
            if same_top is None and _has_scores(tensor):
                same_top = not lost and bool((left.argmax(axis=-1) == right.argmax(axis=-1)).all())
    return Likeness(agree, same_top=same_top, nonfinite=nonfinite, max_abs=max_abs)


def top_classes(outputs: Sequence[Tensor]) -> list[int]:
    """Return the class with the highest score of the first rows of an answer; nothing where it has no scores, or too many classes."""
    for tensor in outputs:
        if tensor.datatype in FLOATS and _has_scores(tensor):
            classes = tensor.shape[-1]
            if classes > _MOST_CLASSES:
                return []
            size = len(tensor.data) // (tensor_rows(tensor) or 1)
            rows = min(tensor_rows(tensor), _SAMPLED_ROWS)
            few = Tensor(tensor.name, tensor.datatype, (rows, classes), memoryview(tensor.data)[: rows * size])
            return float_values(few).argmax(axis=-1).tolist()
    return []


def tensor_rows(tensor: Tensor) -> int:
    """Return how many vectors of scores a tensor holds."""
    rows = 1
    for size in tensor.shape[:-1]:
        rows *= size
    return rows


def float_values(tensor: Tensor) -> npt.NDArray[Any]:
    """Return the numbers of a tensor of floats: those of 16 bits as float32."""
    array: npt.NDArray[Any] = tensor.array()
    if tensor.datatype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if tensor.datatype == "FP16" else array


def _fits(tensor: Tensor, other: Tensor | None) -> bool:
    if other is None or other.shape != tensor.shape:
        return False
    return other.datatype == tensor.datatype or {other.datatype, tensor.datatype} <= FLOATS


def _has_scores(tensor: Tensor) -> bool:
    return bool(tensor.shape) and tensor.shape[-1] > 1


def _compare(stable: npt.NDArray[Any], canary: npt.NDArray[Any], rtol: float, atol: float) -> tuple[bool, bool, float]:
    """Return whether all are alike, whether the canary has lost a number, and the largest difference of two numbers."""
    difference = np.abs(canary - stable)
    alike = difference <= atol + rtol * np.abs(stable)
    largest = float(difference.max(initial=0))
    if np.isfinite(largest):
        return bool(alike.all()), False, largest
    numbers, others = np.isfinite(stable), np.isfinite(canary)
    both = numbers & others
    same = ~numbers & ~others & ((stable == canary) | (np.isnan(stable) & np.isnan(canary)))
    # Of two numbers it can still be infinite: they are further apart than their format reaches.
    largest = min(float(difference[both].max(initial=0)), float(np.finfo(np.float64).max))
    return bool(((alike & both) | same).all()), bool((numbers & ~others).any()), largest
