"""Inputs for a graph out of nothing, and other sizes of inputs that there are. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.graph.spec import TensorSpec

Array = np.ndarray[Any, Any]


def example_inputs(
    inputs: Sequence[TensorSpec], *, sizes: Mapping[str, int] | None = None, batch: int = 2, seed: int = 0
) -> dict[str, Array]:
    """Make inputs out of nothing: floats from a normal distribution, integers and booleans 0 or 1.

    Args:
        inputs: What to make.
        sizes: Size of named dimensions, e.g. from a target's `shapes`; others have size `batch`.
        batch: Size of named dimensions that `sizes` lacks.
        seed: Of the random numbers.
    """
    random = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for spec in inputs:
        shape = [dim if isinstance(dim, int) else (sizes or {}).get(dim, batch) for dim in spec.shape]
        if spec.dtype.startswith("float"):
            made[spec.name] = random.standard_normal(shape).astype(spec.dtype)
        else:
            made[spec.name] = random.integers(0, 2, shape).astype(spec.dtype)
    return made


def resized(inputs: Sequence[TensorSpec], arrays: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
    """Repeat or cut along named dimensions until they have `sizes`; dimensions that `sizes` lacks stay."""
    result = dict(arrays)
    for spec in inputs:
        for axis, name in spec.dynamic.items():
            array = result[spec.name]
            if name in sizes and array.shape[axis] != sizes[name]:
                result[spec.name] = np.take(array, np.arange(sizes[name]) % array.shape[axis], axis=axis)
    return result
