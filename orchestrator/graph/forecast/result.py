"""What a forecast says, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import numpy as np

from orchestrator.ascend.precision import Policy
from orchestrator.graph.forecast.cost import Cost
from orchestrator.graph.forecast.must import Unit
from orchestrator.graph.forecast.ranges import TensorRange
from orchestrator.graph.forecast.reductions import InnerOverflow
from orchestrator.graph.forecast.scaling import Proposal
from orchestrator.graph.forecast.shadow import Damage
from orchestrator.graph.parity import EXACT_DB, OutputMetrics
from orchestrator.graph.verdict import Thresholds, Verdict

STATUS: Final = "uncalibrated"
"""No device has confirmed any forecast yet; `calibrated` is for those that one has."""

Answer = Literal["ok", "warn", "no"]


def worst_db(metrics: Mapping[str, OutputMetrics]) -> float:
    """Return the SQNR of the worst sample of the worst float output; -400 where one is broken, 400 without any."""
    values = [
        -EXACT_DB if m.problem or m.nonfinite_mismatched else m.worst_sqnr_db for m in metrics.values() if m.is_float
    ]
    return min(values, default=EXACT_DB)


@dataclass(frozen=True, slots=True)
class NodeView:
    """The three views of one tensor, under the node that writes it."""

    node: str
    op_type: str
    source: str
    tensor: str
    range: TensorRange
    local: Damage | None
    cumulative: Damage | None

    def to_json(self) -> dict[str, Any]:
        """Return the views; a local view of None: the node only moves data, or holds subgraphs."""
        return {
            "node": self.node, "op_type": self.op_type, "source": self.source, "tensor": self.tensor,
            "range": self.range.to_json(), "local": _damage(self.local), "cumulative": _damage(self.cumulative),
        }  # fmt: skip


def _damage(value: Damage | None) -> dict[str, object] | None:
    if value is None:
        return None
    return {"sqnr_db": round(value.sqnr_db, 2), "nonfinite": value.nonfinite, "saturated": value.saturated}


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the twin reached with one keep list.

    Attributes:
        outputs: Metrics of every output against fp32.
        task: The user's metrics on the twin.
        verdict: Judged by what is asked.
        cost: Of the keep list.
    """

    outputs: Mapping[str, OutputMetrics]
    task: Mapping[str, float]
    verdict: Verdict
    cost: Cost

    @property
    def sqnr_db(self) -> float:
        """SQNR of the worst sample of the worst float output, in dB; -400 where one is not finite."""
        return worst_db(self.outputs)

    @property
    def cosine(self) -> float:
        """Cosine of the worst sample of the worst float output."""
        return min((m.worst_cosine for m in self.outputs.values() if m.is_float), default=1.0)

    @property
    def top1(self) -> float | None:
        """Least share of samples with the same arg max; None where no output looks like logits."""
        found = [m.top1_agreement for m in self.outputs.values() if m.top1_agreement is not None]
        return min(found, default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, JSON-ready."""
        return {
            "sqnr_db": self.sqnr_db, "cosine": self.cosine, "top1": self.top1, "task": dict(self.task),
            "outputs": {name: metrics.to_json() for name, metrics in self.outputs.items()},
            "verdict": self.verdict.to_json(), "cost": self.cost.to_json(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class KeptNode:
    """One line of a keep list and why it is there.

    Attributes:
        inputs, outputs: dtypes of its tensors, for `customize_dtypes`; empty for nodes inside subgraphs.
        alike: Nodes of the main graph with the same operator, kept or not.
    """

    node: str
    op_type: str
    level: Literal["must", "should"]
    reasons: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    alike: int = 0

    def to_json(self) -> dict[str, object]:
        """Return all fields."""
        return {"node": self.node, "op_type": self.op_type, "level": self.level, "reasons": list(self.reasons)}


@dataclass(frozen=True, slots=True)
class Point:
    """One keep list that the search tried: accuracy against cost."""

    nodes: int
    flops_share: float
    sqnr_db: float
    passed: bool

    def to_json(self) -> dict[str, object]:
        """Return all fields."""
        return {"nodes": self.nodes, "flops_share": self.flops_share, "sqnr_db": self.sqnr_db, "passed": self.passed}


@dataclass(frozen=True, slots=True)
class KeepList:
    """Which nodes to keep in fp32, and what could not be helped.

    Attributes:
        mode: `auto`, `none` or `given`.
        must, should: The list; must-keep nodes are never taken out.
        cannot: Units that hold a node without an fp32 kernel on this SoC.
        proposals: What to do about those, proved by running it; `blocked` where nothing was found.
        points: What the search tried.
        runs: Probes of the search that ran; `seconds` what they took, building the session included.
    """

    mode: Literal["auto", "none", "given"]
    must: tuple[KeptNode, ...] = ()
    should: tuple[KeptNode, ...] = ()
    units: tuple[Unit, ...] = ()
    cannot: tuple[Unit, ...] = ()
    proposals: tuple[Proposal, ...] = ()
    points: tuple[Point, ...] = ()
    runs: int = 0
    seconds: float = 0.0

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of all kept nodes."""
        return tuple(one.node for one in (*self.must, *self.should))

    def to_json(self) -> dict[str, Any]:
        """Return the list, JSON-ready."""
        return {
            "mode": self.mode,
            "nodes": list(self.nodes),
            "must": [one.to_json() for one in self.must],
            "should": [one.to_json() for one in self.should],
            "units": [one.to_json() for one in self.units],
            "cannot": [one.to_json() for one in self.cannot],
            "proposals": [one.to_json() for one in self.proposals],
            "pareto": [one.to_json() for one in self.points],
            "probes": self.runs,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the twin says of a model on a SoC in a precision mode.

    Attributes:
        before: The mode alone, nothing kept.
        after: With the keep list; the same as `before` where nothing is kept.
        overflow: Tensors beyond the format; `fused_overflow` those among them that fusion would not hide.
        underflow: Tensors whose flushed zeros reach a division, logarithm or root -> the nodes that divide.
        first_bad_local, first_bad_cumulative: First tensor in topological order whose damage is below what is asked.
        minimum: Per output the tightest thresholds that the result meets; None: none would.
        exponents: Binary exponent -> share of all non-zero values.
        synthetic: Whether the samples were made up; a verdict on noise is at most a warning.
        inside: Node with subgraphs -> float nodes inside: emulated, not shown one by one.
    """

    model: str
    policy: Policy
    thresholds: Thresholds
    samples: int
    synthetic: bool
    nodes: tuple[NodeView, ...]
    ranges: Mapping[str, TensorRange]
    exponents: Mapping[int, float]
    before: Numbers
    after: Numbers
    reference_task: Mapping[str, float]
    keep: KeepList
    overflow: tuple[str, ...]
    fused_overflow: tuple[str, ...]
    saturated: tuple[str, ...]
    underflow: Mapping[str, tuple[str, ...]]
    reductions: tuple[InnerOverflow, ...]
    first_bad_local: str | None
    first_bad_cumulative: str | None
    verdict: Answer
    reasons: tuple[str, ...]
    inside: Mapping[str, int] = field(default_factory=dict[str, int])
    notes: tuple[str, ...] = ()
    timings_s: Mapping[str, float] = field(default_factory=dict[str, float])
    status: str = STATUS

    @property
    def minimum(self) -> Mapping[str, Mapping[str, float] | None]:
        """Per output the tightest thresholds that would pass."""
        return self.after.verdict.minimum

    @property
    def offending(self) -> tuple[str, ...]:
        """Names of the nodes behind the verdict: those that break, and those that cannot be kept."""
        writers = {view.tensor: view.node for view in self.nodes}
        found = [writers[name] for name in (*self.overflow, *self.saturated, *self.underflow) if name in writers]
        found += [name for unit in self.keep.cannot for name in unit.stuck]
        if self.first_bad_local in writers:
            found.append(writers[self.first_bad_local])
        return tuple(dict.fromkeys(found))

    def to_json(self) -> dict[str, Any]:
        """Return the forecast; numbers that are not finite become null."""
        body = {
            "model": self.model, "status": self.status, "verdict": self.verdict, "reasons": list(self.reasons),
            "policy": self.policy.to_json(), "samples": self.samples, "synthetic": self.synthetic,
            "thresholds": {
                "min_sqnr_db": self.thresholds.min_sqnr_db, "min_cosine": self.thresholds.min_cosine,
                "metric_drop": dict(self.thresholds.metric_drop),
            },
            "before": self.before.to_json(), "after": self.after.to_json(), "reference_task": dict(self.reference_task),
            "keep": self.keep.to_json(), "offending_nodes": list(self.offending),
            "overflow": {"strict": list(self.overflow), "fused": list(self.fused_overflow)},
            "saturated": list(self.saturated), "underflow": {k: list(v) for k, v in self.underflow.items()},
            "reductions": [one.to_json() for one in self.reductions],
            "first_bad": {"local": self.first_bad_local, "cumulative": self.first_bad_cumulative},
            "minimum": {name: None if m is None else dict(m) for name, m in self.minimum.items()},
            "exponents": {str(k): v for k, v in self.exponents.items()},
            "nodes": [view.to_json() for view in self.nodes],
            "weights": [r.to_json() for r in self.ranges.values() if r.over or r.nonfinite],
            "inside_subgraphs": dict(self.inside), "notes": list(self.notes),
            "timings_s": {name: round(value, 3) for name, value in self.timings_s.items()},
        }  # fmt: skip
        return _plain(body)


def _plain(value: Any) -> Any:
    """Return the value with numpy's numbers as Python's and those that are not finite as None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, np.generic):
        value = cast("Any", value).item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
