"""The range view: what each tensor of the fp32 graph reaches on the samples, before anything is rounded.

Two passes. The first looks at every tensor with statistics that write nothing (maximum, minimum, sum of squares) and takes
out a few thousand evenly spaced values, from which shares and the histogram of exponents are estimated. The second counts
exactly, only where it matters: values out of range, and small values that reach a division, a logarithm or a root.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from orchestrator.graph.forecast.batches import Batches
from orchestrator.graph.forecast.clamped import clamped_tensors
from orchestrator.graph.forecast.instrument import Instrument, Taken, take
from orchestrator.graph.forecast.workspace import Workspace
from orchestrator.graph.parity import FP16_MAX

Array = np.ndarray[Any, Any]

MIN_NORMAL: Final = 2.0**-14
"""Below it fp16 loses digits."""
_NEVER_NEGATIVE: Final = frozenset({
    "Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Sqrt", "Exp", "Abs", "ReduceL1", "ReduceL2",
    "ReduceSumSquare",
})  # fmt: skip
_PIECE: Final = 1 << 18
FLUSHED: Final = 2.0**-25
"""At or below it fp16 rounds to zero (half of the smallest subnormal, ties to even)."""


@dataclass(frozen=True, slots=True)
class TensorRange:
    """What one tensor reached.

    Attributes:
        absmax: Largest finite or infinite |x|; NaN where all that was found was NaN.
        rms: Root of the mean square.
        elements: On all samples.
        over: Number of finite values beyond 65504.
        nonfinite: Number of NaN and infinities in fp32 already.
        subnormal_share: Share of non-zero values below 2^-14.
        flushed_share: Share of non-zero values that fp16 rounds to zero.
        exact: Whether the shares were counted over all values; else over the sampled ones.
    """

    tensor: str
    absmax: float
    rms: float
    elements: int
    over: int = 0
    nonfinite: int = 0
    subnormal_share: float = 0.0
    flushed_share: float = 0.0
    exact: bool = False

    def to_json(self) -> dict[str, object]:
        """Return all fields; figures that are not finite become null."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Ranges:
    """The range of every float tensor, in topological order; the fp32 outputs; how often each exponent occurs."""

    tensors: Mapping[str, TensorRange]
    outputs: Mapping[str, Array]
    exponents: Mapping[int, float]


def measure_ranges(space: Workspace, batches: Batches, *, sensitive: Iterable[str] = ()) -> Ranges:
    """Run the range view.

    Args:
        space: With shapes measured.
        batches: The samples.
        sensitive: Tensors whose small values are counted exactly.

    Raises:
        GateError: The graph does not run on the samples.
    """
    names = float_tensors(space)
    copies = {copy: source for copy, source in space.copies().items() if copy in names and source in names}
    made, asked = Instrument(space), set(names) - set(copies)
    clamped = clamped_tensors(space, asked, copies)
    for entry in space.graph.input:
        if entry.name in asked:
            _look(made, space, entry.name, batches.runs, signed=True)
    for node in space.graph.node:
        made.nodes.append(node)
        for name in node.output:
            if name in clamped:
                made.scalar(f"square {name}", made.reduce("ReduceSumSquare", made.flat(name)))
            elif name in asked:
                _look(made, space, name, batches.runs, signed=node.op_type not in _NEVER_NEGATIVE)
    taken = take(made, batches, outputs=space.graph.output)
    for name, clamp in clamped.items():
        clamp.derive(name, taken)
    rough: dict[str, TensorRange] = {}
    for name in names:
        if name in copies:
            rough[name] = replace(rough[copies[name]], tensor=name)
        else:
            rough[name] = _rough(name, taken, _elements(space, name, batches))
    rough.update(_weights(space))
    wanted = set(sensitive)
    suspects = [n for n in names if n in wanted or not rough[n].absmax <= FP16_MAX]
    exact = _count(space, batches, suspects)
    found = {name: exact[name](value) if name in exact else value for name, value in rough.items()}
    return Ranges(found, taken.outputs, _exponents(taken, rough))


def float_tensors(space: Workspace) -> list[str]:
    """Return the fp32 tensors that are computed or given, not weights, in topological order; empty ones left out."""
    weights = set(space.weights)
    given = [entry.name for entry in space.graph.input if entry.name not in weights]
    computed = [name for node in space.graph.node for name in node.output if name]
    return [n for n in (*given, *computed) if space.is_float(n) and n in space.shapes and math.prod(space.shapes[n])]


def _look(made: Instrument, space: Workspace, name: str, runs: int, *, signed: bool) -> None:
    flat = made.flat(name)
    made.scalar(f"max {name}", made.reduce("ReduceMax", flat))
    if signed:
        made.scalar(f"min {name}", made.reduce("ReduceMin", flat))
    made.scalar(f"square {name}", made.reduce("ReduceSumSquare", flat))
    made.sample(name, flat, math.prod(space.shapes[name]), runs)


def _elements(space: Workspace, name: str, batches: Batches) -> int:
    """Count over all samples; the shapes are those of a full batch and the last batch may be smaller."""
    full = min(batches.size, batches.count)
    return max(1, round(math.prod(space.shapes[name]) * batches.count / full))


def _rough(name: str, taken: Taken, elements: int) -> TensorRange:
    top = taken.scalars[f"max {name}"]
    bottom = taken.scalars.get(f"min {name}", top)
    squares = taken.scalars[f"square {name}"]
    absmax = float(np.max(np.maximum(np.abs(top), np.abs(bottom))))
    if np.isnan(squares).any():  # a maximum may step over NaN, a sum does not
        absmax = math.inf if math.isinf(absmax) else math.nan
    power = float(np.sum(squares)) / elements
    values = np.abs(taken.samples[name])
    nonzero = values[values > 0]
    return TensorRange(
        name, absmax, math.sqrt(power) if power >= 0 else math.nan, elements,
        subnormal_share=_share(nonzero, float(np.nextafter(MIN_NORMAL, 0))), flushed_share=_share(nonzero, FLUSHED),
    )  # fmt: skip


def _share(values: Array, limit: float) -> float:
    return float(np.mean(values <= limit)) if values.size else 0.0


def _weights(space: Workspace) -> dict[str, TensorRange]:
    found: dict[str, TensorRange] = {}
    for name, tensor in space.weights.items():
        if not space.is_float(name):
            continue
        values = space.values(tensor).ravel()
        if values.size:
            found[name] = _weight(name, values)
    return found


def _weight(name: str, values: Array) -> TensorRange:
    """Look at a weight piece by piece, so that no copy of it is ever whole."""
    absmax, squares = 0.0, 0.0
    nonzero = small = lost = over = nonfinite = 0
    for start in range(0, values.size, _PIECE):
        piece = np.abs(values[start : start + _PIECE])
        top, power = float(piece.max()), float(np.dot(piece, piece))
        absmax = max(absmax, top) if top == top else math.nan  # noqa: PLR0124  NaN is not itself
        squares += power
        nonzero += int(np.count_nonzero(piece))
        small += int(np.count_nonzero(piece < MIN_NORMAL))
        lost += int(np.count_nonzero(piece <= FLUSHED))
        if not top <= FP16_MAX:
            finite = np.isfinite(piece)
            over += int(np.count_nonzero(finite & (piece > FP16_MAX)))
            nonfinite += int(np.count_nonzero(~finite))
    zeros = values.size - nonzero
    return TensorRange(
        name, absmax, math.sqrt(squares / values.size) if squares >= 0 else math.nan, values.size,
        over=over, nonfinite=nonfinite, subnormal_share=(small - zeros) / max(1, nonzero),
        flushed_share=(lost - zeros) / max(1, nonzero), exact=True,
    )  # fmt: skip


def _count(space: Workspace, batches: Batches, suspects: list[str]) -> dict[str, Any]:
    """Return a correction per suspect, from counts over all its values."""
    if not suspects:
        return {}
    made, wanted = Instrument(space), set(suspects)
    limits = {"over": ("Greater", FP16_MAX), "any": ("Greater", 0.0), "small": ("Less", MIN_NORMAL)}
    limits["lost"] = ("Less", float(np.nextafter(np.float32(FLUSHED), np.float32(1))))

    def look(name: str) -> None:
        flat = made.emit("Abs", made.flat(name))
        for label, (kind, limit) in limits.items():
            made.scalar(f"{label} {name}", made.count(made.emit(kind, flat, made.constant(limit))))
        made.scalar(f"infinite {name}", made.count(made.emit("Greater", flat, made.constant(np.finfo(np.float32).max))))
        made.scalar(f"nan {name}", made.count(made.emit("IsNaN", flat)))

    for entry in space.graph.input:
        if entry.name in wanted:
            look(entry.name)
    for node in space.graph.node:
        made.nodes.append(node)
        for name in node.output:
            if name in wanted:
                look(name)
    taken = take(made, batches)
    total = {label: float(np.sum(values)) for label, values in taken.scalars.items()}
    return {name: _correction(name, total) for name in suspects}


def _correction(name: str, total: Mapping[str, float]) -> Any:
    def correct(rough: TensorRange) -> TensorRange:
        elements, infinite, nan = rough.elements, int(total[f"infinite {name}"]), int(total[f"nan {name}"])
        zeros = elements - total[f"any {name}"] - nan
        nonzero = max(1.0, elements - zeros)
        return TensorRange(
            name, rough.absmax, rough.rms, elements,
            over=int(total[f"over {name}"]) - infinite,
            nonfinite=infinite + nan,
            subnormal_share=max(0.0, total[f"small {name}"] - zeros) / nonzero,
            flushed_share=max(0.0, total[f"lost {name}"] - zeros) / nonzero,
            exact=True,
        )  # fmt: skip

    return correct


def _exponents(taken: Taken, rough: Mapping[str, TensorRange]) -> dict[int, float]:
    """Return binary exponent -> share of all non-zero values, each tensor's sample weighed by its size."""
    found: dict[int, float] = {}
    for name, values in taken.samples.items():
        finite = values[np.isfinite(values) & (values != 0)]
        if finite.size:
            exponents, counts = np.unique(np.frexp(finite)[1] - 1, return_counts=True)
            weight = rough[name].elements / values.size
            for exponent, count in zip(exponents, counts, strict=True):
                found[int(exponent)] = found.get(int(exponent), 0.0) + float(count) * weight
    whole = sum(found.values()) or 1.0
    return {exponent: found[exponent] / whole for exponent in sorted(found)}
