"""What a strategy asks for before it begins: how many requests show a bad canary, how many clear a good one, and the earliest end."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

from orchestrator.rollout.evidence.compared import Share, latency_margin
from orchestrator.rollout.evidence.judge import tests_of
from orchestrator.rollout.evidence.sequential import THETAS, log_excess, log_mean_exp, lower_rate, upper_rate
from orchestrator.rollout.evidence.spec import AnalysisSpec, MetricSpec
from orchestrator.rollout.evidence.stream import CANARY_SHARE, CONTROL_SHARE
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_steps import Analysis, Pause, SetMirror, SetWeight

_RUNS: Final = 200
_MOST_EVENTS: Final = 3000
_TWICE: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one test of an analysis takes; all in requests (pairs, users) of the canary.

    Attributes:
        name: As in `MetricJudgement.name`.
        base_rate: Share of stable's requests that are events, which the figures assume.
        detect_median: Until twice the base rate is reported, in half of all cases; None where it is not within reach.
        detect_p90: The same in 9 of 10 cases.
        clear: Until the margin is cleared if neither side has an event (latency: both exceed the quantile at the base rate), and
            `min_samples` are there.
    """

    name: str
    weight: int
    base_rate: float
    margin: float
    detect_median: int | None
    detect_p90: int | None
    clear: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNeed:
    """What one step takes.

    Attributes:
        step: Index from 0; -1 for the analysis beside the steps.
        weight: The canary's weight then, in percent; `mirror`: of how many of stable's requests it gets a copy.
        needs: Of its analysis; empty for other steps.
        earliest_s: At the earliest after the start, without waiting for people; None where the rate of requests is not known.
    """

    step: int
    kind: str
    weight: int
    mirror: int
    needs: tuple[Need, ...]
    earliest_s: float | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Explanation:
    """All steps, and when the rollout can end at the earliest; None where the rate of requests decides and is not known."""

    steps: tuple[StepNeed, ...]
    earliest_end_s: float | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"steps": [step.to_json() for step in self.steps], "earliest_end_s": self.earliest_end_s}


def explain(strategy: Strategy, *, base_rate: float = 0.01, rps: float | None = None) -> Explanation:
    """Return what each step takes; last, under step -1, the analysis beside the steps at the last weight below 100.

    Args:
        strategy: The resolved strategy.
        base_rate: Share of stable's requests that fail today.
        rps: Requests of users per second, for the earliest end.
    """
    weight = mirror = 0
    elapsed: float | None = 0.0
    found: list[StepNeed] = []
    for place, step in enumerate(strategy.steps):
        needs: tuple[Need, ...] = ()
        if isinstance(step, SetWeight):
            weight = step.weight
        elif isinstance(step, SetMirror):
            mirror = step.percent
        elif isinstance(step, Pause):
            wait = _wait_s(step.min_requests or 0, weight, rps)
            elapsed = None if elapsed is None or wait is None else elapsed + max(step.duration_s or 0.0, wait)
        elif isinstance(step, Analysis):
            needs = needs_of(step.spec, weight, base_rate)
            elapsed = _after(elapsed, needs, (weight, mirror), rps, strategy.probe_rate)
        row = StepNeed(step=place, kind=step.kind, weight=weight, mirror=mirror, needs=needs, earliest_s=elapsed)
        found.append(row)
    if strategy.analysis is not None:
        weights = [row.weight for row in found if 0 < row.weight < 100] or [50]
        needs = needs_of(strategy.analysis, weights[-1], base_rate)
        end = _after(0.0, needs, (max(weights), mirror), rps, strategy.probe_rate)
        elapsed = None if elapsed is None or end is None else max(elapsed, end)
        row = StepNeed(step=-1, kind="analysis", weight=weights[-1], mirror=mirror, needs=needs, earliest_s=elapsed)
        found.append(row)
    return Explanation(tuple(found), elapsed)


def _wait_s(requests: int, weight: int, rps: float | None) -> float | None:
    if not requests:
        return 0.0
    return requests / (rps * weight / 100) if rps and weight else None


def _after(
    elapsed: float | None, needs: tuple[Need, ...], shares: tuple[int, int], rps: float | None, probe_rate: float
) -> float | None:
    """Return when an analysis that begins at `elapsed` can have passed.

    Args:
        elapsed: Seconds after the start.
        needs: Of the analysis.
        shares: The canary's weight, and the part of stable's requests of which it gets a copy, in percent.
        rps: Requests of users per second.
        probe_rate: Replayed samples per second to each side.
    """
    for need in needs:
        copies = need.name.startswith("parity")
        rate = (rps or 0.0) * shares[1 if copies else 0] / 100
        rate = max(rate, 0.0 if copies else probe_rate)
        if elapsed is None or rate <= 0:
            return None
    slowest = [need.clear / max((rps or 0.0) * _share(need, shares), _probed(need, probe_rate)) for need in needs]
    return None if elapsed is None else elapsed + max(slowest, default=0.0)


def _share(need: Need, shares: tuple[int, int]) -> float:
    return shares[1 if need.name.startswith("parity") else 0] / 100


def _probed(need: Need, probe_rate: float) -> float:
    return 0.0 if need.name.startswith("parity") else probe_rate


def needs_of(analysis: AnalysisSpec, weight: int, base_rate: float) -> tuple[Need, ...]:
    """Return what each test of an analysis takes while the canary has this weight in percent."""
    tests = sum(tests_of(metric) for metric in analysis.metrics if not metric.dry_run)
    found: list[Need] = []
    for metric in analysis.metrics:
        least = analysis.min_samples if metric.min_samples is None else metric.min_samples
        share = Share(analysis.alpha / max(1, tests), analysis.alpha, least)
        if metric.name == "latency":
            found += [
                _need(f"latency_p{q * 100:g}", weight, 1 - q, latency_margin(metric, q), share)
                for q in metric.quantiles
            ]
        elif metric.name == "parity":
            found.append(_of_pairs(metric, weight, share))
        elif tests_of(metric):
            found.append(_need(metric.name, weight, base_rate, metric.limit, share))
    return tuple(found)


def _need(name: str, weight: int, base_rate: float, margin: float, share: Share) -> Need:
    median, p90 = requests_to_detect(weight, base_rate, share.threshold)
    usual = base_rate if name.startswith("latency") else 0.0
    clear = max(requests_to_clear(margin, share.bound, usual, weight), share.min_samples)
    return Need(
        name=name,
        weight=weight,
        base_rate=base_rate,
        margin=margin,
        detect_median=median,
        detect_p90=p90,
        clear=clear,
    )


def _of_pairs(metric: MetricSpec, weight: int, share: Share) -> Need:
    """Return what parity takes: there is no stable rate; what is detected is twice the margin."""
    margin, n = metric.limit, 1.0
    while n < 1e7 and log_excess(_TWICE * margin * n, n, margin) < share.threshold:
        n *= 1.05
    clear = max(requests_to_clear(margin, share.bound + math.log(CANARY_SHARE)), share.min_samples)
    middle = math.ceil(n)
    return Need(
        name=metric.name,
        weight=weight,
        base_rate=margin,
        margin=margin,
        detect_median=middle,
        detect_p90=math.ceil(1.6 * n),
        clear=clear,
    )


def requests_to_clear(margin: float, log_inverse_alpha: float, rate: float = 0.0, weight: int = 50) -> int:
    """Return after how many requests of the canary the bound of the difference is below a margin, at 10 million at most.

    Args:
        margin: Of the difference.
        log_inverse_alpha: log(1 / alpha) of the bound.
        rate: Share of requests that are events on both sides; 0 = there is none.
        weight: The canary's, in percent: how many requests stable has beside them.
    """
    share = min(max(weight, 1), 99) / 100
    scale = share / (1 - share)
    level = log_inverse_alpha - math.log(CANARY_SHARE)
    other = log_inverse_alpha - math.log(CONTROL_SHARE)

    def bound(n: float) -> float:
        return upper_rate(rate * n, n, level) - lower_rate(rate * n, n, other, scale)

    low, high = 0, 1
    while bound(high) >= margin and high < 10_000_000:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bound(middle) >= margin else (low, middle)
    return high


def requests_to_detect(weight: int, base_rate: float, threshold: float) -> tuple[int | None, int | None]:
    """Return after how many requests of the canary a doubled rate is reported: in half of all cases, and in 9 of 10.

    Events come from the canary `2 * w` times for each `1 - w` times from stable, so that the evidence depends on the number of events
    alone; requests follow from the rate. Simulated with a fixed seed, and kept.
    """
    share = weight / 100
    if not 0 < share < 1 or base_rate <= 0:
        return None, None
    per_request = min(1.0, _TWICE * base_rate) + base_rate * (1 - share) / share
    events = _events_to_detect(weight, round(threshold, 3))
    median, p90 = (None if count is None else math.ceil(count / per_request) for count in events)
    return median, p90


@lru_cache(maxsize=1024)
def _events_to_detect(weight: int, threshold: float) -> tuple[int | None, int | None]:
    share = weight / 100
    chance = _TWICE * share / (_TWICE * share + 1 - share)
    steps = [(math.log(theta) - math.log1p(share * (theta - 1)), -math.log1p(share * (theta - 1))) for theta in THETAS]
    dice = random.Random(20260501)
    counts = sorted(_one_run(steps, chance, threshold - _PRIOR, dice) for _ in range(_RUNS))
    found = [counts[round(part * (_RUNS - 1))] for part in (0.5, 0.9)]
    median, p90 = (None if count > _MOST_EVENTS else count for count in found)
    return median, p90


_PRIOR: Final = math.log(0.8)
"""The alarm's e-value gives routed requests this weight; see `compared`."""


def _one_run(steps: list[tuple[float, float]], chance: float, threshold: float, dice: random.Random) -> int:
    logs = [0.0] * len(steps)
    for count in range(1, _MOST_EVENTS + 1):
        side = 0 if dice.random() < chance else 1
        logs = [log + step[side] for log, step in zip(logs, steps, strict=True)]
        # The mixture reaches the threshold only where one of its parts does.
        if max(logs) >= threshold and log_mean_exp(logs) >= threshold:
            return count
    return _MOST_EVENTS + 1
