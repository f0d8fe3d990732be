"""The links of the parity chain, torch → ONNX → target's graph → twin → variant: what was measured, and how it is judged.

A link holds metrics only. Its verdict is taken from the limits that rule now, so that a changed limit needs no new run
(DESIGN D10).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.graph.parity import EXACT_DB, OutputMetrics
from orchestrator.graph.verdict import EXPORT_SQNR_DB, PRECISION_SQNR_DB, Thresholds, Verdict, judge, thresholds_for


@dataclass(frozen=True, slots=True)
class Link:
    """One comparison on the same samples.

    Attributes:
        candidate: What was put to the test: `onnx`, `graph`, `twin` or `variant`.
        reference: What it was held against: `torch` or `onnx`.
        target: The recipe's target; empty for what all targets share.
        precision: Precision mode that the candidate computes in; `fp32` rounds nothing.
        device: What computed the candidate, e.g. `cpu (rehearsal)`.
        saturating: Whether the candidate hides overflow as 65504 and NaN as 0.
        task: Task metrics of the candidate; empty where they were not measured.
        reference_task: Task metrics of the reference.
        skipped: Why there are no metrics; empty where there are.
    """

    candidate: str
    reference: str
    target: str
    precision: str
    device: str
    saturating: bool = False
    metrics: Mapping[str, OutputMetrics] = field(default_factory=dict[str, OutputMetrics])
    task: Mapping[str, float] = field(default_factory=dict[str, float])
    reference_task: Mapping[str, float] = field(default_factory=dict[str, float])
    skipped: str = ""

    @property
    def name(self) -> str:
        """`torch → onnx`, or `onnx → twin (npu)`."""
        return f"{self.reference} → {self.candidate}" + (f" ({self.target})" if self.target else "")

    @property
    def worst_sqnr_db(self) -> float | None:
        """The worst sample of the worst float output; None where nothing was measured."""
        found = [metrics.worst_sqnr_db for metrics in self.metrics.values() if metrics.is_float]
        return min(found, default=None)

    def thresholds(self, parity: Mapping[str, Mapping[str, Any]]) -> Thresholds:
        """Return the limits of this link: its target's, or those of an export where nothing is rounded.

        What a target asks is meant for how its device rounds. A variant that was run in fp32 has no such excuse, so the
        limits of an export hold for it at least.

        Args:
            parity: Target -> the recipe's `parity`.
        """
        if self.candidate not in {"twin", "variant"}:
            return Thresholds()
        asked = thresholds_for(self.precision, parity.get(self.target))
        if self.candidate == "twin" or self.precision in PRECISION_SQNR_DB:
            return asked
        return replace(asked, min_sqnr_db=max(asked.min_sqnr_db, EXPORT_SQNR_DB))

    @property
    def summary(self) -> str:
        """The worst sample in a few words; of outputs that hold no floats, the share that agrees."""
        worst = self.worst_sqnr_db
        if worst is not None and worst < EXACT_DB:
            return f"{worst:.1f} dB"
        agreement = min((metrics.agreement for metrics in self.metrics.values() if not metrics.is_float), default=1.0)
        return "identical" if agreement == 1.0 else f"{agreement:.2%} of the values equal"

    def judge(self, parity: Mapping[str, Mapping[str, Any]]) -> Verdict | None:
        """Judge the link by the limits that rule now; None where nothing was measured."""
        if self.skipped:
            return None
        return judge(
            self.metrics,
            self.thresholds(parity),
            saturating=self.saturating,
            reference_task=self.reference_task,
            candidate_task=self.task,
        )

    def to_json(self) -> dict[str, Any]:
        """Return all fields, JSON-ready."""
        return {
            "candidate": self.candidate,
            "reference": self.reference,
            "target": self.target,
            "precision": self.precision,
            "device": self.device,
            "saturating": self.saturating,
            "metrics": {name: metrics.to_json() for name, metrics in self.metrics.items()},
            "task": dict(self.task),
            "reference_task": dict(self.reference_task),
            "skipped": self.skipped,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Link:
        """Rebuild from `to_json`."""
        fields = dict(data)
        fields["metrics"] = {name: OutputMetrics.from_json(value) for name, value in fields["metrics"].items()}
        return cls(**fields)


def misses(links: Iterable[Link], parity: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one sentence for each reason that a link fails under these limits; nothing where all pass."""
    found: list[str] = []
    for link in links:
        verdict = link.judge(parity)
        for reason in verdict.reasons if verdict is not None else ():
            subject = f"{reason.output}: " if reason.output else ""
            found.append(f"{link.name}: {subject}{reason.text}{_would_pass(verdict, reason.output)}")
    return found


def _would_pass(verdict: Verdict | None, output: str) -> str:
    minimum = verdict.minimum.get(output) if verdict is not None else None
    if not minimum:
        return ""
    return " (would pass: " + ", ".join(f"{name} {value:g}" for name, value in minimum.items()) + ")"
