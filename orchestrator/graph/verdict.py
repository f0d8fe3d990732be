"""The judging of parity: metrics against thresholds, in the order that keeps NaN and saturation from hiding.

Per output: shape and dtype, then non-finite values, then, on SoCs that saturate, |x| >= 65504 and zeros that the reference
lacks, then the numbers; last the task metric. Comparisons are written so that NaN fails them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from orchestrator.graph.parity import FP16_MAX, OutputMetrics

Rule = Literal["nothing", "shape", "nonfinite", "saturation", "numbers", "metric"]

EXPORT_SQNR_DB: Final = 80.0
"""What an fp32 export must reach; rounding alone leaves far more, a wrong operator far less."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What is asked; the defaults are those of an fp32 export.

    Attributes:
        min_sqnr_db: Least SQNR of the worst sample of each float output.
        min_cosine: Least cosine of the worst sample; None does not ask.
        min_agreement: Least share of equal elements of each integer or bool output.
        metric_drop: Task metric -> how far it may fall below the reference's, absolute; higher is better.
    """

    min_sqnr_db: float = EXPORT_SQNR_DB
    min_cosine: float | None = None
    min_agreement: float = 1.0
    metric_drop: Mapping[str, float] = field(default_factory=dict[str, float])


PRECISION_SQNR_DB: Final[Mapping[str, float]] = {
    "fp16": 40.0,
    "mixed_float16": 40.0,
    "cube_fp16in_fp32out": 40.0,
    "mixed_bfloat16": 30.0,
}
"""Least SQNR that passes, by precision mode, where the recipe asks nothing; modes that round nothing must be like an export.
Our own starting points, not calibrated on devices yet: a clean fp16 network keeps 55 dB and more, a broken one falls below 20."""

PRECISION_COSINE: Final[Mapping[str, float]] = {"mixed_bfloat16": 0.997}
"""Least cosine by precision mode; 0.9995 for the fp16 modes."""


def thresholds_for(precision: str, asked: Mapping[str, Any] | None = None) -> Thresholds:
    """Return the limits of a target: what its recipe asks, and the defaults of its precision for the rest.

    Args:
        precision: The target's precision mode; `fp32` and `origin` round nothing.
        asked: The recipe's `parity`: min_sqnr_db, min_cosine, metric_drop, each optional.
    """
    given = {key: value for key, value in (asked or {}).items() if value is not None}
    rounded = precision in PRECISION_SQNR_DB
    cosine = PRECISION_COSINE.get(precision, 0.9995) if rounded else None
    return Thresholds(
        min_sqnr_db=float(given.get("min_sqnr_db", PRECISION_SQNR_DB.get(precision, EXPORT_SQNR_DB))),
        min_cosine=given.get("min_cosine", cosine),
        min_agreement=1.0,
        metric_drop=dict(given.get("metric_drop", {})),
    )


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a verdict is no: the output (empty for the task metric), the rule, and a sentence with the values."""

    output: str
    rule: Rule
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, the reasons of a no, and per output the tightest thresholds that would pass (None: none would)."""

    passed: bool
    reasons: tuple[Reason, ...]
    minimum: Mapping[str, Mapping[str, float] | None]

    def to_json(self) -> dict[str, object]:
        """Return the verdict, JSON-ready."""
        reasons = [{"output": r.output, "rule": r.rule, "text": r.text} for r in self.reasons]
        minimum = {name: None if value is None else dict(value) for name, value in self.minimum.items()}
        return {"passed": self.passed, "reasons": reasons, "minimum": minimum}


def judge(
    metrics: Mapping[str, OutputMetrics],
    thresholds: Thresholds,
    *,
    saturating: bool,
    reference_task: Mapping[str, float] | None = None,
    candidate_task: Mapping[str, float] | None = None,
) -> Verdict:
    """Judge all outputs, and the task metrics that `thresholds.metric_drop` names.

    Args:
        metrics: Of `parity.compare`.
        thresholds: What is asked.
        saturating: Whether the SoC turns infinity into 65504 and NaN into 0.
        reference_task: Task metrics of the reference.
        candidate_task: Task metrics of the candidate.
    """
    reasons: list[Reason] = []
    minimum: dict[str, Mapping[str, float] | None] = {}
    if not metrics:
        reasons.append(Reason("", "nothing", "no outputs were compared"))
    for name, output in metrics.items():
        broken = _broken(output, saturating)
        minimum[name] = None if broken else _minimum(output)
        reasons.extend([broken] if broken else _numbers(output, thresholds))
    reasons.extend(_task(thresholds.metric_drop, reference_task or {}, candidate_task or {}))
    return Verdict(not reasons, tuple(reasons), minimum)


def _broken(output: OutputMetrics, saturating: bool) -> Reason | None:
    """Return what no tolerance can excuse."""
    if output.problem:
        return Reason(output.name, "shape", output.problem)
    if output.samples < 1 or output.elements < 1:
        return Reason(output.name, "nothing", "no samples were compared")
    if output.nonfinite_mismatched:
        text = (
            f"{output.nonfinite_mismatched} of {output.elements} values are non-finite on one side only "
            f"({output.nonfinite_candidate} in the candidate, {output.nonfinite_reference} in the reference)"
        )
        return Reason(output.name, "nonfinite", text)
    if saturating and output.is_float and (output.saturated or output.lost_zeros):
        text = (
            f"{output.saturated} values at or above {FP16_MAX:.0f} and {output.lost_zeros} zeros that the reference lacks: "
            "overflow or NaN that this SoC hides"
        )
        return Reason(output.name, "saturation", text)
    return None


def _numbers(output: OutputMetrics, asked: Thresholds) -> list[Reason]:
    found: list[Reason] = []
    if not output.is_float:
        if not output.agreement >= asked.min_agreement:
            text = f"{output.agreement:.4%} of the values agree, asked {asked.min_agreement:.4%}"
            found.append(Reason(output.name, "numbers", text))
        return found
    if not output.worst_sqnr_db >= asked.min_sqnr_db:
        text = f"SQNR {output.worst_sqnr_db:.1f} dB at sample {output.worst_sample}, asked {asked.min_sqnr_db:g} dB"
        found.append(Reason(output.name, "numbers", text))
    if asked.min_cosine is not None and not output.worst_cosine >= asked.min_cosine:
        text = f"cosine {output.worst_cosine:.6f} at the worst sample, asked {asked.min_cosine:g}"
        found.append(Reason(output.name, "numbers", text))
    return found


def _minimum(output: OutputMetrics) -> dict[str, float]:
    """Round towards what passes, so that the printed figure can be pasted into a recipe."""
    if not output.is_float:
        return {"min_agreement": math.floor(output.agreement * 1e6) / 1e6}
    return {
        "min_sqnr_db": math.floor(output.worst_sqnr_db * 10) / 10,
        "min_cosine": math.floor(output.worst_cosine * 1e6) / 1e6,
    }


def _task(allowed: Mapping[str, float], reference: Mapping[str, float], candidate: Mapping[str, float]) -> list[Reason]:
    found: list[Reason] = []
    for name, limit in allowed.items():
        if name not in reference or name not in candidate:
            side = "reference" if name not in reference else "candidate"
            found.append(Reason("", "metric", f"{name} was not measured on the {side}"))
            continue
        drop = reference[name] - candidate[name]
        if not drop <= limit:
            text = f"{name} fell by {drop:.6g} (from {reference[name]:.6g} to {candidate[name]:.6g}), allowed {limit:g}"
            found.append(Reason("", "metric", text))
    return found
