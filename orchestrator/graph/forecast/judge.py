"""Verdicts of a forecast: what is asked, what only warns, and which tensor is the first that is bad."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final

from orchestrator.graph.forecast.must import Unit
from orchestrator.graph.forecast.result import Answer, Numbers
from orchestrator.graph.forecast.scaling import Proposal
from orchestrator.graph.forecast.shadow import Damage
from orchestrator.graph.verdict import Thresholds, judge

WARN: Final[Mapping[str, Thresholds]] = {
    "fp16": Thresholds(min_sqnr_db=30.0, min_cosine=0.997),
    "bf16": Thresholds(min_sqnr_db=20.0, min_cosine=0.99),
}
"""Below the default and above these is a warning, below these a no; limits that the user set have no such margin."""


def answer(
    after: Numbers,
    *,
    asked: Thresholds,
    limits: Collection[str],
    low: str,
    saturating: bool,
    reference_task: Mapping[str, float],
    cannot: Iterable[Unit],
    proposals: Iterable[Proposal],
    synthetic: bool,
) -> tuple[Answer, tuple[str, ...]]:
    """Return the verdict and its reasons.

    A limit that the user set (`limits` names the fields of `asked`) and that is missed by any amount is a no; a default
    that is nearly met is a warning.
    A unit that certainly fails on a node without an fp32 kernel is a no: `blocked`, or a scaling is proposed and proved,
    which the user must apply first.
    """
    reasons = [
        reason.text if not reason.output else f"{reason.output}: {reason.text}" for reason in after.verdict.reasons
    ]
    worst: Answer = "ok"
    if reasons:
        lenient = _lenient(asked, limits, WARN.get(low, WARN["fp16"]))
        worst = "warn" if _passes(after, lenient, saturating=saturating, reference_task=reference_task) else "no"
    proved = {tensor for one in proposals if one.status == "proved" for tensor in one.tensors}
    for unit in cannot:
        way = "a scaling is proposed and proved: apply it" if unit.tensor in proved else "blocked"
        stuck = ", ".join(unit.stuck[:3])
        reasons.append(
            f"{unit.tensor} {unit.text}; this SoC has no fp32 kernel for {stuck}: {way if unit.certain else 'near'}"
        )
        worst = "no" if unit.certain else ("warn" if worst == "ok" else worst)
    if synthetic:
        reasons.append(
            "the samples are synthetic: real inputs may behave otherwise, so this is no verdict, only a warning"
        )
        worst = "warn"
    return worst, tuple(reasons)


def _passes(after: Numbers, asked: Thresholds, *, saturating: bool, reference_task: Mapping[str, float]) -> bool:
    return judge(
        after.outputs, asked, saturating=saturating, reference_task=reference_task, candidate_task=after.task
    ).passed


def _lenient(asked: Thresholds, limits: Collection[str], floor: Thresholds) -> Thresholds:
    """Return what only warns: the defaults among the limits lowered to `floor`."""
    if "min_sqnr_db" not in limits:
        asked = replace(asked, min_sqnr_db=min(asked.min_sqnr_db, floor.min_sqnr_db))
    if "min_cosine" not in limits and asked.min_cosine is not None:
        asked = replace(asked, min_cosine=min(asked.min_cosine, floor.min_cosine or 0.0))
    return asked


def first_bad(damages: Mapping[str, Damage], asked: Thresholds) -> str | None:
    """Return the first tensor in topological order that is broken or below the SQNR that is asked of outputs."""
    for tensor, damage in damages.items():
        if damage.broken or not damage.sqnr_db >= asked.min_sqnr_db:
            return tensor
    return None
