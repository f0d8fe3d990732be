"""What a pool demands of every rollout to it, beyond what the recipe asks for. It may demand more, never less."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator, Field

from orchestrator.recipe.fields import Model, Text, Whole
from orchestrator.recipe.metric_names import METRIC_NAMES
from orchestrator.recipe.metrics import Margin, Samples, wrong
from orchestrator.recipe.problems import Loc, did_you_mean, show

if TYPE_CHECKING:
    from orchestrator.recipe.metrics import Metric, StepAnalysis
    from orchestrator.recipe.rollout import Rollout

DEFAULT_MARGINS: Final = {
    "error_rate": 0.01,
    "users": 0.01,
    "latency": 0.05,
    "parity": 0.005,
    "nonfinite": 0.001,
    "saturated": 0.001,
    "drift": 0.25,
}
"""What a metric's margin is where the recipe gives none; a test holds it equal to `rollout/evidence`."""

DEFAULT_MIN_SAMPLES: Final = 100

_OF_COPIES: Final = frozenset({"parity", "drift"})

Finding = tuple[Loc, str]


def _known(value: str) -> str:
    if value not in METRIC_NAMES:
        raise wrong(f"there is no metric {show(value)}{did_you_mean(value, METRIC_NAMES)}")
    return value


KnownMetric = Annotated[Text, AfterValidator(_known), Field(json_schema_extra={"enum": list(METRIC_NAMES)})]


class RolloutPolicy(Model):
    """Demands of a pool."""

    min_steps: Whole = Field(
        0, ge=0, le=100, description="Steps that a strategy must have at least; `direct` has none, `blue_green` few."
    )
    approvals: Whole = Field(
        0, ge=0, le=16, description="People who must approve at least; what the recipe asks for when that is more."
    )
    require: tuple[KnownMetric, ...] = Field(
        (), description="Metrics that must judge every rollout, in a step or beside the steps, not as a dry run."
    )
    max_first_weight: Annotated[int, Field(strict=True, ge=0, le=100)] = Field(
        100, description="Largest first `set_weight`, in percent; below 100 it rules out blue_green and direct."
    )
    max_margins: dict[KnownMetric, Margin] = Field(
        {}, description="Metric -> largest margin that a recipe may give it."
    )
    min_samples: Samples | None = Field(None, description="Least `min_samples` of every analysis.")


def unmet(rollout: Rollout | None, policy: RolloutPolicy) -> Iterator[Finding]:
    """Yield what the pool demands and the recipe does not give: where in the recipe, and what.

    Approvals are never unmet: the larger number of the two holds.

    Args:
        rollout: The recipe's block; None where a model is promoted without a recipe.
        policy: The pool's demands.
    """
    at: Loc = ("rollout", rollout.kind) if rollout is not None and rollout.kind != "direct" else ("rollout",)
    kind = rollout.kind if rollout is not None else "direct"
    steps = step_count(rollout)
    if steps < policy.min_steps:
        yield at, f"the pool demands at least {policy.min_steps} steps (min_steps), and {kind} has {steps}"
    first = first_weight(rollout)
    if first > policy.max_first_weight:
        where = _first_weight_at(rollout, at)
        yield where, f"the pool allows at most {policy.max_first_weight} % first (max_first_weight), not {first} %"
    judged = {metric.name for _, analysis in analyses(rollout) for metric in analysis.metrics if not metric.dry_run}
    for name in policy.require:
        if name not in judged:
            yield at, f"the pool demands that {name} judges every rollout (require), and no analysis has it"
    for loc, analysis in analyses(rollout):
        yield from _lax(loc, analysis, policy)


def _lax(loc: Loc, analysis: StepAnalysis, policy: RolloutPolicy) -> Iterator[Finding]:
    for index, metric in enumerate(analysis.metrics):
        at: Loc = (*loc, "metrics", index)
        most = policy.max_margins.get(metric.name)
        margin = metric.margin or DEFAULT_MARGINS.get(metric.name, 0.0)
        if most is not None and margin > most:
            yield at, f"the pool allows a margin of at most {most:g} for {metric.name} (max_margins), not {margin:g}"
        samples = _samples(metric, analysis)
        if policy.min_samples is not None and samples is not None and samples < policy.min_samples:
            yield at, f"the pool demands min_samples of at least {policy.min_samples}, and {metric.name} has {samples}"


def _samples(metric: Metric, analysis: StepAnalysis) -> int | None:
    if metric.prometheus is not None:
        return None
    return metric.min_samples or analysis.min_samples or DEFAULT_MIN_SAMPLES


def analyses(rollout: Rollout | None) -> Iterator[tuple[Loc, StepAnalysis]]:
    """Yield every analysis of a rollout with its place in the recipe."""
    if rollout is None:
        return
    if rollout.canary is not None:
        at: Loc = ("rollout", "canary")
        if rollout.canary.analysis is not None:
            yield (*at, "analysis"), rollout.canary.analysis
        for index, step in enumerate(rollout.canary.steps):
            if step.analysis is not None:
                yield (*at, "steps", index, "analysis"), step.analysis
    if rollout.blue_green is not None:
        for name in ("pre_promotion_analysis", "post_promotion_analysis"):
            found: StepAnalysis | None = getattr(rollout.blue_green, name)
            if found is not None:
                yield ("rollout", "blue_green", name), found


def step_count(rollout: Rollout | None) -> int:
    """Return how many steps the walk has."""
    if rollout is None:
        return 0
    if rollout.canary is not None:
        return len(rollout.canary.steps)
    return len(blue_green_keys(rollout))


def blue_green_keys(rollout: Rollout) -> tuple[str, ...]:
    """Return the parts of a blue_green in the order of the walk; empty for other strategies.

    `gate` is the pause for a person, `switch` the one weight. While an analysis before the switch compares answers, the new
    generation gets copies of all requests (`mirror`).
    """
    parts = rollout.blue_green
    if parts is None:
        return ()
    before = parts.pre_promotion_analysis
    copies = before is not None and any(metric.name in _OF_COPIES for metric in before.metrics)
    has = {
        "preview": parts.preview is not None and bool(parts.preview.match),
        "mirror": copies,
        "pre_promotion_analysis": parts.pre_promotion_analysis is not None,
        "mirror_off": copies,
        "gate": not parts.auto_promote,
        "switch": True,
        "post_promotion_analysis": parts.post_promotion_analysis is not None,
    }
    return tuple(name for name, there in has.items() if there)


def first_weight(rollout: Rollout | None) -> int:
    """Return the first weight above 0 that the canary gets, in percent; 100 where no step gives one."""
    steps = rollout.canary.steps if rollout is not None and rollout.canary is not None else ()
    return next((step.set_weight for step in steps if step.set_weight), 100)


def _first_weight_at(rollout: Rollout | None, fallback: Loc) -> Loc:
    if rollout is None or rollout.canary is None:
        return fallback
    for index, step in enumerate(rollout.canary.steps):
        if step.set_weight:
            return ("rollout", "canary", "steps", index, "set_weight")
    return fallback
