"""Analyses that could never pass: what they compare does not come about where they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.recipe.metrics import Metric, StepAnalysis
from orchestrator.recipe.problems import Loc
from orchestrator.recipe.rollout import BlueGreen, Canary, Rollout, Step

Finding = tuple[Loc, str]

_OF_ANSWERS = frozenset({"error_rate", "latency"})
"""Need requests that the canary answers; golden samples will do."""
_OF_OUTPUTS = frozenset({"nonfinite", "saturated", "drift"})
"""Need outputs of the canary; copies will do as well."""


def rollout_findings(rollout: Rollout | None) -> Iterator[Finding]:
    """Yield each metric that waits for what the steps do not bring, with its place in the recipe."""
    if rollout is None:
        return
    probed = rollout.probe is not None
    if rollout.canary is not None:
        yield from _canary(rollout.canary, probed=probed)
    if rollout.blue_green is not None:
        yield from _blue_green(rollout.blue_green, probed=probed)


def _canary(canary: Canary, *, probed: bool) -> Iterator[Finding]:
    at: Loc = ("rollout", "canary")
    sticky = canary.sticky is not None
    for index, step in enumerate(canary.steps):
        if step.analysis is not None:
            brought = _Brought.at(canary.steps, index, probed=probed, sticky=sticky)
            yield from _lacking((*at, "steps", index, "analysis"), step.analysis, brought)
    if canary.analysis is not None:
        brought = _Brought.since(canary.steps, canary.analysis.starting_step, probed=probed, sticky=sticky)
        yield from _lacking((*at, "analysis"), canary.analysis, brought)


def _blue_green(parts: BlueGreen, *, probed: bool) -> Iterator[Finding]:
    shown = parts.preview is not None and bool(parts.preview.match)
    before = _Brought(copies=True, requests=shown or probed, users=False, where="before the switch", fix="`preview`")
    after = _Brought(copies=False, requests=True, users=False, where="after the switch", fix="")
    for name, brought in (("pre_promotion_analysis", before), ("post_promotion_analysis", after)):
        analysis: StepAnalysis | None = getattr(parts, name)
        if analysis is not None:
            yield from _lacking(("rollout", "blue_green", name), analysis, brought)


class _Brought:
    """What the canary gets while an analysis waits."""

    def __init__(self, *, copies: bool, requests: bool, users: bool, where: str, fix: str) -> None:
        self.copies, self.requests, self.users, self.where, self.fix = copies, requests, users, where, fix

    @classmethod
    def at(cls, steps: Sequence[Step], index: int, *, probed: bool, sticky: bool) -> _Brought:
        """Return what the steps before this one have set."""
        weight = mirror = 0
        routed = False
        for step in steps[:index]:
            weight = step.set_weight if step.set_weight is not None else weight
            mirror = step.set_mirror.percent if step.set_mirror is not None else mirror
            routed = bool(step.set_header_route.match) if step.set_header_route is not None else routed
        asked = weight > 0 or routed or probed
        return cls(
            copies=mirror > 0,
            requests=asked,
            users=weight > 0 and sticky,
            where="at this step",
            fix="a `set_weight` above it",
        )

    @classmethod
    def since(cls, steps: Sequence[Step], first: int, *, probed: bool, sticky: bool) -> _Brought:
        """Return what there is at any time from a step on."""
        found = [cls.at(steps, index, probed=probed, sticky=sticky) for index in range(first, len(steps) + 1)]
        return cls(
            copies=any(each.copies for each in found),
            requests=any(each.requests for each in found),
            users=any(each.users for each in found),
            where="at any step",
            fix="a `set_weight`",
        )


def _lacking(loc: Loc, analysis: StepAnalysis, brought: _Brought) -> Iterator[Finding]:
    for index, metric in enumerate(analysis.metrics):
        why = "" if metric.dry_run or metric.prometheus is not None else _why_never(metric, brought)
        if why:
            yield (*loc, "metrics", index), f"{metric.name} would wait for ever: {why}"


def _why_never(metric: Metric, brought: _Brought) -> str:
    if metric.name == "parity" and not brought.copies:
        fix = "; add a `set_mirror`" if brought.fix else ""
        return f"it compares copies of stable's requests, and there are none {brought.where}{fix}"
    if metric.name == "users" and not brought.users:
        return f"it needs `sticky`, which tells users apart, and a `set_weight`; it has not both {brought.where}"
    asks = metric.name in _OF_ANSWERS or (metric.name in _OF_OUTPUTS and not brought.copies)
    if asks and not brought.requests:
        return (
            f"the canary answers no requests {brought.where}; add `probe`{f' or {brought.fix}' if brought.fix else ''}"
        )
    return ""
