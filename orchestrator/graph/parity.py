"""How close two sets of outputs are: the measuring. `verdict.py` judges, so that a verdict can be taken again.

All metrics are finite numbers, fit for JSON. Positions where reference and candidate are non-finite in the same way are
left out of the numbers; every other non-finite position is counted, and fails. Sums are float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]
_Floats = npt.NDArray[np.float64]
_Flags = npt.NDArray[np.bool_]

EXACT_DB: Final = 400.0
"""What `sqnr_db` says of identical outputs, instead of infinity; float64 itself reaches about 320 dB."""

FP16_MAX: Final = 65504.0
"""Largest finite fp16 value; what a saturating SoC writes for infinity."""

LOST_ZERO_SHARE: Final = 0.01
"""A candidate's zero counts as lost when the reference exceeds this share of the output's peak: rounding and a ReLU near 0
stay far below, NaN turned into 0 does not."""

_FP16_MIN_NORMAL: Final = 2.0**-14


@dataclass(frozen=True, slots=True)
class OutputMetrics:
    """What was measured of one output; axis 0 is the sample.

    Attributes:
        problem: Why nothing could be measured (absent, other shape, other dtype, empty), else empty.
        sqnr_db: Signal-to-noise ratio over all samples: 10 log10(sum ref^2 / sum (ref - cand)^2).
        worst_sqnr_db: The same of the worst sample, which is number `worst_sample`.
        p99_sqnr_db: What 99 of 100 samples reach; equal to the worst below 100 samples.
        cosine, worst_cosine: Cosine of the flattened outputs, over all samples and of the sample where it is lowest.
        max_abs, p99_abs: Largest and 99th percentile of |ref - cand| over all elements.
        max_rel: Largest |ref - cand| / |ref| where |ref| exceeds a millionth of the peak.
        agreement: Share of equal elements; for integer and bool outputs the figure that is judged.
        top1_agreement: Share of samples with the same arg max; only for floats of shape [samples, classes].
        nonfinite_reference, nonfinite_candidate: Number of NaN and infinities.
        nonfinite_mismatched: Positions where one is non-finite and the other is not so in the same way.
        saturated: Positions where |cand| >= 65504 and |ref| is below.
        lost_zeros: Positions where cand is exactly 0 and ref is large (see `LOST_ZERO_SHARE`).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    problem: str = ""
    samples: int = 0
    elements: int = 0
    sqnr_db: float = -EXACT_DB
    worst_sqnr_db: float = -EXACT_DB
    worst_sample: int = -1
    cosine: float = 0.0
    worst_cosine: float = 0.0
    max_abs: float = 0.0
    p99_abs: float = 0.0
    max_rel: float = 0.0
    agreement: float = 0.0
    top1_agreement: float | None = None
    nonfinite_reference: int = 0
    nonfinite_candidate: int = 0
    nonfinite_mismatched: int = 0
    saturated: int = 0
    lost_zeros: int = 0
    p99_sqnr_db: float = -EXACT_DB

    @property
    def is_float(self) -> bool:
        """Whether the numbers, rather than the agreement, are judged."""
        return self.dtype.startswith("float")

    def to_json(self) -> dict[str, object]:
        """Return all fields, JSON-ready."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OutputMetrics:
        """Rebuild from `to_json`."""
        fields = dict(data)
        fields["shape"] = tuple(fields["shape"])
        return cls(**fields)


def compare(reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> dict[str, OutputMetrics]:
    """Measure every output that either side has, by name.

    Args:
        reference: Trusted outputs; axis 0 is the sample.
        candidate: What is put to the test, in the same sample order.
    """
    names = [*reference, *(name for name in candidate if name not in reference)]
    return {name: _measure(name, reference.get(name), candidate.get(name)) for name in names}


def _measure(name: str, reference: Array | None, candidate: Array | None) -> OutputMetrics:
    if reference is None or candidate is None:
        present = candidate if reference is None else reference
        assert present is not None
        side = "the reference lacks it" if reference is None else "the candidate lacks it"
        return OutputMetrics(name, str(present.dtype), present.shape, problem=side)
    problem = ""
    if reference.shape != candidate.shape:
        problem = f"shape {list(candidate.shape)}, expected {list(reference.shape)}"
    elif reference.dtype != candidate.dtype:
        problem = f"dtype {candidate.dtype}, expected {reference.dtype}"
    elif reference.ndim == 0 or reference.size == 0:
        problem = "nothing to compare: no samples or no elements"
    elif reference.dtype.kind not in "fiub":
        problem = f"dtype {reference.dtype} cannot be compared"
    if problem:
        return OutputMetrics(name, str(reference.dtype), candidate.shape, problem=problem)
    return _numbers(name, reference, candidate)


def _numbers(name: str, reference: Array, candidate: Array) -> OutputMetrics:
    rows = reference.shape[0]
    ref = reference.astype(np.float64).reshape(rows, -1)
    cand = candidate.astype(np.float64).reshape(rows, -1)
    both = np.isfinite(ref) & np.isfinite(cand)
    same: _Flags = np.equal(reference, candidate).reshape(rows, -1) | (np.isnan(ref) & np.isnan(cand))
    ref0, cand0 = np.where(both, ref, 0.0), np.where(both, cand, 0.0)
    peak = max(float(np.max(np.abs(ref0))), float(np.max(np.abs(cand0)))) or 1.0
    with np.errstate(over="ignore"):  # two values near the end of float64
        error: _Floats = np.minimum(np.abs(ref0 - cand0), np.finfo(np.float64).max)
    per_row_db, per_row_cosine = _sqnr_rows(ref0 / peak, cand0 / peak), _cosine_rows(ref0 / peak, cand0 / peak)
    flat = (ref0 / peak).reshape(1, -1), (cand0 / peak).reshape(1, -1)
    large: _Flags = np.abs(ref0) > peak * 1e-6
    return OutputMetrics(
        name=name,
        dtype=str(reference.dtype),
        shape=reference.shape,
        samples=rows,
        elements=ref.size,
        sqnr_db=float(_sqnr_rows(*flat)[0]),
        worst_sqnr_db=float(np.min(per_row_db)),
        worst_sample=int(np.argmin(per_row_db)),
        cosine=float(_cosine_rows(*flat)[0]),
        worst_cosine=float(np.min(per_row_cosine)),
        max_abs=float(np.max(error)),
        p99_abs=float(np.quantile(error, 0.99)),
        max_rel=float(np.max(error[large] / np.abs(ref0[large]))) if large.any() else 0.0,
        agreement=float(np.mean(same)),
        top1_agreement=_top1(reference, candidate),
        nonfinite_reference=int(np.sum(~np.isfinite(ref))),
        nonfinite_candidate=int(np.sum(~np.isfinite(cand))),
        nonfinite_mismatched=int(np.sum(~both & ~same)),
        saturated=int(np.sum(both & (np.abs(cand) >= FP16_MAX) & (np.abs(ref) < FP16_MAX))),
        lost_zeros=_lost_zeros(ref0, cand0, both),
        p99_sqnr_db=float(np.quantile(per_row_db, 0.01, method="lower")),
    )


def _sqnr_rows(ref: _Floats, cand: _Floats) -> _Floats:
    """SQNR in dB of each row; both scaled to a peak of 1, so that squares cannot overflow."""
    signal, noise = np.sum(ref**2, axis=1), np.sum((ref - cand) ** 2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = 10.0 * np.log10(signal / noise)
    value = np.where(noise == 0.0, EXACT_DB, np.where(signal == 0.0, -EXACT_DB, value))
    return np.clip(value, -EXACT_DB, EXACT_DB)


def _cosine_rows(ref: _Floats, cand: _Floats) -> _Floats:
    """Cosine of each row; two zero rows agree (1), a zero row and another do not (0)."""
    norms = np.sqrt(np.sum(ref**2, axis=1)) * np.sqrt(np.sum(cand**2, axis=1))
    zero = (np.any(ref != 0.0, axis=1) == False) & (np.any(cand != 0.0, axis=1) == False)  # noqa: E712
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.sum(ref * cand, axis=1) / norms
    return np.clip(np.where(zero, 1.0, np.where(norms == 0.0, 0.0, value)), -1.0, 1.0)


def _top1(reference: Array, candidate: Array) -> float | None:
    if reference.dtype.kind != "f" or reference.ndim != 2 or reference.shape[1] < 2:
        return None
    with_nan: _Flags = np.any(
        np.isnan(candidate), axis=1, keepdims=True
    )  # arg max is then the NaN's place: no agreement
    equal: _Flags = np.argmax(reference, axis=1, keepdims=True) == np.argmax(candidate, axis=1, keepdims=True)
    return float(np.mean(equal & ~with_nan))


def _lost_zeros(ref: _Floats, cand: _Floats, both: _Flags) -> int:
    peak = float(np.max(np.abs(ref)))
    large = np.abs(ref) > max(LOST_ZERO_SHARE * peak, _FP16_MIN_NORMAL)
    return int(np.sum(both & (cand == 0.0) & large))
