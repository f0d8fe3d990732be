"""How a rollout goes: the resolved form of the recipe's `rollout:` block, as the ledger keeps it and the controller walks it.

All strategies are one list of steps, so that there is one walk: `direct` has none, `blue_green` is a list with one weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from orchestrator.core.digests import Digest, sha256_json
from orchestrator.core.errors import UsageError
from orchestrator.environment.rollout import RolloutPolicy, blue_green_keys, unmet
from orchestrator.recipe.metrics import BackgroundAnalysis, Kill, Metric, StepAnalysis
from orchestrator.recipe.problems import dotted
from orchestrator.recipe.rollout import HeaderRoute, Rollout
from orchestrator.recipe.rollout import Step as RecipeStep
from orchestrator.rollout.evidence.spec import AnalysisSpec, KillSpec, MetricSpec, PrometheusSpec
from orchestrator.rollout.strategy_steps import (
    Analysis,
    HeaderMatch,
    Pause,
    SetHeaderRoute,
    SetMirror,
    SetWeight,
    Step,
    step_from_json,
    step_to_json,
)

__all__ = [
    "Analysis",
    "HeaderMatch",
    "Kind",
    "Pause",
    "SetHeaderRoute",
    "SetMirror",
    "SetWeight",
    "Step",
    "Strategy",
    "resolve",
    "step_from_json",
    "step_to_json",
]

Kind = Literal["canary", "blue_green", "direct"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A resolved strategy.

    Attributes:
        kind: What the recipe calls it; the walk does not ask.
        steps: In order; after the last one the canary goes live. Skipped where no generation is live.
        analysis: Watches beside the steps from `analysis.starting_step` on, and must have passed at the end.
        kill: What ends the rollout at once.
        sticky: Header whose value keeps a user on one side; empty deals requests out one by one.
        on_failure: rollback takes all weight from the canary at once; pause leaves the weights.
        extend: How often an inconclusive step is given its time again.
        then: What follows when it is still inconclusive.
        keep: Former generations whose files stay on disk.
        progress_deadline_s: A rollout that makes no step for so long, and waits for nobody, has failed.
        approvals: Different identities that must approve before it goes live.
        by_token: The site names approvers: only what a token shows counts as an approval.
        probe_rate: Golden samples per second to each generation while an analysis waits; 0 = none.
        scale_down_delay_s: How long the former generation stays loaded at least; 0 = until the next rollout needs the room.
        promote_from: Alias of MLflow that may ask for a rollout; empty = none.
    """

    kind: Kind = "direct"
    steps: tuple[Step, ...] = ()
    analysis: AnalysisSpec | None = None
    kill: KillSpec = field(default_factory=KillSpec)
    sticky: str = ""
    on_failure: Literal["rollback", "pause"] = "rollback"
    extend: int = 2
    then: Literal["pause", "rollback"] = "pause"
    keep: int = 2
    progress_deadline_s: float = 600.0
    approvals: int = 0
    by_token: bool = False
    probe_rate: float = 0.0
    scale_down_delay_s: float = 0.0
    promote_from: str = ""

    @property
    def analyses(self) -> tuple[AnalysisSpec, ...]:
        """Every analysis, the one beside the steps first."""
        of_steps = tuple(step.spec for step in self.steps if isinstance(step, Analysis))
        return of_steps if self.analysis is None else (self.analysis, *of_steps)

    @property
    def tolerances(self) -> tuple[float, float]:
        """(rtol, atol) within which answers of the two are alike: of the first parity metric, else the defaults."""
        named = (metric for spec in self.analyses for metric in spec.metrics if metric.name == "parity")
        parity = next(named, MetricSpec(name="parity"))
        return parity.rtol, parity.atol

    @property
    def digest(self) -> Digest:
        """Digest of the canonical JSON."""
        return sha256_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the form that the ledger and the plan keep."""
        return {
            "kind": self.kind,
            "steps": [step_to_json(step) for step in self.steps],
            "analysis": None if self.analysis is None else self.analysis.to_json(),
            "kill": self.kill.to_json(),
            **{name: getattr(self, name) for name in _PLAIN},
            **({_BY_TOKEN: True} if self.by_token else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Strategy:
        """Rebuild a strategy; absent fields take their defaults."""
        analysis = cast("Mapping[str, Any] | None", data.get("analysis"))
        return cls(
            kind=data.get("kind", "direct"),
            steps=tuple(step_from_json(step) for step in cast("Sequence[Mapping[str, Any]]", data.get("steps", ()))),
            analysis=None if analysis is None else AnalysisSpec.from_json(analysis),
            kill=KillSpec.from_json(data.get("kill") or {}),
            by_token=bool(data.get(_BY_TOKEN)),
            **{name: data[name] for name in _PLAIN if name in data},
        )


_BY_TOKEN = "by_token"  # noqa: S105 - a name
_PLAIN = (
    "sticky",
    "on_failure",
    "extend",
    "then",
    "keep",
    "progress_deadline_s",
    "approvals",
    "probe_rate",
    "scale_down_delay_s",
    "promote_from",
)


def resolve(rollout: Rollout | None, policy: RolloutPolicy | None = None) -> Strategy:
    """Return the strategy of a recipe in a pool, every default filled in.

    Args:
        rollout: The recipe's block; None, as for a model that is promoted without a recipe, means `direct`.
        policy: What the pool demands; it may demand more than the recipe has, never less. Of approvals the larger number holds.

    Raises:
        UsageError: The recipe has less than the pool demands; says what, and where in the recipe.
    """
    _refuse_less(rollout, policy)
    approvals = max(rollout.approvals if rollout is not None else 0, policy.approvals if policy is not None else 0)
    if rollout is None:
        return Strategy(approvals=approvals)
    canary = rollout.canary
    parts = canary if canary is not None else rollout.blue_green
    inconclusive = parts.on_inconclusive if parts is not None else None
    return Strategy(
        kind=rollout.kind,
        steps=tuple(_step(step) for step in canary.steps) if canary is not None else _blue_green(rollout),
        analysis=_beside(canary.analysis) if canary is not None and canary.analysis is not None else None,
        kill=_kill(parts.kill) if parts is not None else KillSpec(),
        sticky=canary.sticky.header if canary is not None and canary.sticky is not None else "",
        on_failure=rollout.on_failure,
        extend=inconclusive.extend if inconclusive is not None else 2,
        then=inconclusive.then if inconclusive is not None else "pause",
        keep=rollout.keep,
        progress_deadline_s=rollout.progress_deadline,
        approvals=approvals,
        probe_rate=rollout.probe.rate if rollout.probe is not None else 0.0,
        scale_down_delay_s=rollout.blue_green.scale_down_delay if rollout.blue_green is not None else 0.0,
        promote_from=rollout.promote_from.alias if rollout.promote_from is not None else "",
    )


def _refuse_less(rollout: Rollout | None, policy: RolloutPolicy | None) -> None:
    found = list(unmet(rollout, policy)) if policy is not None else []
    if found:
        listed = "; ".join(message for _, message in found)
        place = dotted(found[0][0]) if rollout is not None else ""
        fix = (
            "change the recipe there" if rollout is not None else "name a recipe with `--recipe`, whose rollout has it"
        )
        raise UsageError(
            listed,
            place=place,
            hint=f"{fix}, or roll out to another pool (`pools.<pool>.rollout` of the environment demands it)",
            details={"unmet": [{"path": dotted(loc), "message": message} for loc, message in found]},
        )


def _step(step: RecipeStep) -> Step:
    if step.set_weight is not None:
        return SetWeight(step.set_weight)
    if step.set_mirror is not None:
        return SetMirror(step.set_mirror.percent)
    if step.set_header_route is not None:
        return _route(step.set_header_route)
    if step.analysis is not None:
        return Analysis(_analysis(step.analysis))
    assert step.pause is not None  # a step has exactly one key
    return Pause(step.pause.duration, step.pause.min_requests)


def _blue_green(rollout: Rollout) -> tuple[Step, ...]:
    parts = rollout.blue_green
    made: dict[str, Step] = {
        "mirror": SetMirror(100),
        "mirror_off": SetMirror(0),
        "gate": Pause(),
        "switch": SetWeight(100),
    }
    if parts is None:
        return ()
    if parts.preview is not None:
        made["preview"] = _route(parts.preview)
    for name in ("pre_promotion_analysis", "post_promotion_analysis"):
        analysis: StepAnalysis | None = getattr(parts, name)
        if analysis is not None:
            made[name] = Analysis(_analysis(analysis))
    return tuple(made[key] for key in blue_green_keys(rollout))


def _route(route: HeaderRoute) -> SetHeaderRoute:
    return SetHeaderRoute(tuple(HeaderMatch(match.header, match.how, match.value) for match in route.match))


def _analysis(analysis: StepAnalysis) -> AnalysisSpec:
    given = {} if analysis.min_samples is None else {"min_samples": analysis.min_samples}
    return AnalysisSpec(metrics=tuple(_metric(each) for each in analysis.metrics), alpha=analysis.alpha, **given)


def _beside(analysis: BackgroundAnalysis) -> AnalysisSpec:
    return replace(_analysis(analysis), starting_step=analysis.starting_step, interval_s=analysis.interval)


def _metric(metric: Metric) -> MetricSpec:
    given = {name: value for name in _COPIED if (value := getattr(metric, name)) is not None}
    if metric.interval is not None:
        given["interval_s"] = metric.interval
    if metric.prometheus is not None:
        given["prometheus"] = PrometheusSpec(metric.prometheus.address, metric.prometheus.query)
    return MetricSpec(**given)


_COPIED = (
    "name",
    "margin",
    "min_samples",
    "quantiles",
    "rtol",
    "atol",
    "dry_run",
    "success_condition",
    "failure_condition",
    "failure_limit",
    "inconclusive_limit",
    "consecutive_error_limit",
)


def _kill(kill: Kill) -> KillSpec:
    return KillSpec(
        failures_in_row=kill.failures_in_row, restarts=kill.restarts, latency_ceiling_s=kill.latency_ceiling
    )
