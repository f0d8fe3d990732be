"""Samples in pieces that a graph takes, and synthetic ones where the user gives none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from orchestrator.core.errors import UserCodeError
from orchestrator.graph.spec import TensorSpec, check_arrays

Array = np.ndarray[Any, Any]

SYNTHETIC_SAMPLES: Final = 8
_VARYING_DIMENSION: Final = 8
_SYNTHETIC_INTEGERS: Final = 2
"""Integers are drawn below this: small enough for any table of embeddings."""


class Batches:
    """The samples of one forecast, axis 0 = sample, cut as the graph takes them.

    Args:
        inputs: What the graph declares.
        samples: Every input; axis 0 is the sample.
        size: Samples at once where the graph lets it vary.

    Raises:
        UserCodeError: The samples are not those that the graph declares, or do not fill its fixed batches.
    """

    def __init__(self, inputs: Sequence[TensorSpec], samples: Mapping[str, Array], *, size: int = 8) -> None:
        self.inputs = tuple(inputs)
        self.samples = {name: np.asarray(value) for name, value in samples.items()}
        varying = frozenset(spec.name for spec in inputs if 0 in spec.dynamic)
        heads = {spec.shape[0] if spec.shape else 1 for spec in inputs}
        self.sliced = varying or (frozenset(spec.name for spec in inputs) if len(heads) == 1 else frozenset[str]())
        self.fixed = None if varying or len(heads) != 1 else int(next(iter(heads)))
        missing = {spec.name for spec in inputs} ^ set(self.samples)
        if missing:
            raise UserCodeError(
                f"the samples have inputs {sorted(self.samples)}, the graph {sorted(spec.name for spec in inputs)}",
                hint="name the arrays of the .npz file, or the keys of each sample, as the graph names its inputs",
            )
        counts = {len(self.samples[name]) for name in self.sliced if self.samples[name].ndim}
        if len(counts) > 1:
            raise UserCodeError(f"the inputs have different numbers of samples: {sorted(counts)}")
        self.count = counts.pop() if counts else 1
        if self.count < 1:
            raise UserCodeError("there are no samples", hint="give at least one; axis 0 is the sample")
        if self.fixed and self.count % self.fixed:
            raise UserCodeError(
                f"{self.count} samples do not fill batches of {self.fixed}, which is the only size this graph takes",
                hint="give a multiple",
            )
        self.size = self.fixed or size
        check_arrays(self.inputs, self.piece(0, self.size), "the samples", error=UserCodeError)

    @property
    def runs(self) -> int:
        """How many pieces there are."""
        return -(-self.count // self.size) if self.sliced else 1

    def piece(self, start: int, size: int) -> dict[str, Array]:
        """Return samples `start` to `start + size`, contiguous."""
        return {
            name: np.ascontiguousarray(array[start : start + size] if name in self.sliced else array)
            for name, array in self.samples.items()
        }

    def __iter__(self) -> Iterator[dict[str, Array]]:
        if not self.sliced:
            yield self.piece(0, 1)
            return
        for start in range(0, self.count, self.size):
            yield self.piece(start, self.size)

    def chosen(self, rows: Sequence[int]) -> tuple[Batches, list[int]]:
        """Return a part of the samples, and which they are: of a graph with a fixed batch the batches that hold them."""
        if not self.sliced:
            return self, list(range(self.count))
        picked = sorted(set(rows))
        if self.fixed and self.fixed > 1:
            starts = sorted({row // self.fixed * self.fixed for row in rows})
            picked = [start + offset for start in starts for offset in range(self.fixed)]
        parts = {name: array[picked] if name in self.sliced else array for name, array in self.samples.items()}
        return Batches(self.inputs, parts, size=self.size), picked

    def sized(self, size: int) -> Batches:
        """Return the same samples in pieces of `size`, where the graph lets it vary."""
        return Batches(self.inputs, self.samples, size=size)


def fitted(samples: Mapping[str, Array], inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return the samples as a rewritten graph takes them: narrower integers or floats, whole batches of a fixed size.

    A last batch that is not full is filled with its own samples again.

    Raises:
        UserCodeError: A value does not fit the narrower type.
    """
    specs = {spec.name: spec for spec in inputs}
    heads = {spec.shape[0] for spec in inputs if spec.shape}
    size = next(iter(heads)) if len(heads) == 1 else None
    found: dict[str, Array] = {}
    for name, value in samples.items():
        array = np.asarray(value)
        spec = specs.get(name)
        if spec is not None and str(array.dtype) != spec.dtype and array.dtype.kind == np.dtype(spec.dtype).kind:
            narrow = array.astype(spec.dtype)
            if array.dtype.kind in "iu" and not np.array_equal(narrow, array):
                raise UserCodeError(f"input {name!r} has values that {spec.dtype}, which the graph takes, cannot hold")
            array = narrow
        if spec is not None and isinstance(size, int) and array.ndim and len(array) % size:
            array = np.take(array, range(-(-len(array) // size) * size), axis=0, mode="wrap")
        found[name] = array
    return found


def nonfinite(samples: Mapping[str, Array]) -> str | None:
    """Return where the first NaN or infinity is, for the message: on such inputs no network can be judged."""
    for name, value in samples.items():
        array = np.asarray(value)
        bad = ~np.isfinite(array) if array.dtype.kind == "f" else np.zeros(0, bool)
        if not bad.any():
            continue
        place = np.unravel_index(int(np.argmax(bad)), bad.shape)
        what = "NaN" if np.isnan(array[place]) else "infinity"
        return f"sample {place[0]}: input {name!r} has {what}" if place else f"input {name!r} is {what}"
    return None


def synthetic(inputs: Sequence[TensorSpec], *, count: int = SYNTHETIC_SAMPLES, seed: int = 1) -> dict[str, Array]:
    """Return random samples: standard normal floats, integers 0 and 1. Good for finding crashes, not for a verdict."""
    random = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    made: dict[str, Array] = {}
    for spec in inputs:
        shape = tuple(
            _dimension(axis, dim, count, sizes, single=bool(spec.dynamic)) for axis, dim in enumerate(spec.shape)
        )
        if spec.dtype.startswith("float"):
            made[spec.name] = random.standard_normal(shape).astype(spec.dtype)
        else:
            made[spec.name] = random.integers(0, _SYNTHETIC_INTEGERS, shape).astype(spec.dtype)
    return made


def _dimension(axis: int, dim: int | str, count: int, sizes: dict[str, int], *, single: bool) -> int:
    if isinstance(dim, str):
        return sizes.setdefault(dim, count if axis == 0 else _VARYING_DIMENSION)
    if axis == 0 and not single:
        return dim * -(-count // dim) if dim < count else dim
    return dim
