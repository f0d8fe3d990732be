"""The judge of an analysis: takes rows of evidence in their order, and says at any time where the canary stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from orchestrator.rollout.evidence.alone import Pairs, Users
from orchestrator.rollout.evidence.compared import Events, Share, Slow, Test
from orchestrator.rollout.evidence.custom import Custom
from orchestrator.rollout.evidence.drift import Drift
from orchestrator.rollout.evidence.judgement import Judgement, Point, State
from orchestrator.rollout.evidence.rows import Counts, Row
from orchestrator.rollout.evidence.spec import AnalysisSpec, MetricSpec

_GROWTH: Final = 1.02
"""A curve gets a point each time the canary's requests have grown by 2 %: about 50 for each e-fold, whatever the traffic."""


def _errors(counts: Counts) -> int:
    return counts.errors


def _shared(counts: Counts) -> int:
    return counts.shared


def _none(_: Counts) -> int:
    return 0


def _nonfinite(counts: Counts) -> int:
    return counts.nonfinite


def _saturated(counts: Counts) -> int:
    return counts.saturated


_Count = Callable[[Counts], int]
_EVENTS: Final[Mapping[str, tuple[_Count, _Count, str]]] = {
    "error_rate": (_errors, _shared, "requests failed"),
    "nonfinite": (_nonfinite, _none, "answers with NaN or infinity"),
    "saturated": (_saturated, _none, "answers at the edge of the number format"),
}


class Judge:
    """Judges a canary by an analysis. The same rows in the same order give the same judgement, now or years later.

    Its alarms are false with chance `analysis.alpha` at most, over all its tests together, however often one looks, and whatever makes
    one stop. The tests of the metrics that decide share alpha evenly; those of a dry run have as much, beside it.

    Args:
        analysis: Metrics, margins, alpha.

    Raises:
        UsageError: A condition of a custom metric cannot be read.
    """

    def __init__(self, analysis: AnalysisSpec) -> None:
        self.analysis = analysis
        shares = sum(tests_of(metric) for metric in analysis.metrics if not metric.dry_run)
        self._alpha = analysis.alpha / max(1, shares)
        self._tests: list[Test] = [test for metric in analysis.metrics for test in self._of(metric)]
        self._curves: dict[str, list[Point]] = {test.name: [] for test in self._tests}
        self._t = 0.0
        self._rows = 0

    def _of(self, metric: MetricSpec) -> list[Test]:
        least = self.analysis.min_samples if metric.min_samples is None else metric.min_samples
        share = Share(self._alpha, self.analysis.alpha, least)
        if metric.prometheus is not None:
            return [Custom(metric)]
        if metric.name in _EVENTS:
            return [Events(metric, share, *_EVENTS[metric.name])]
        match metric.name:
            case "latency":
                return [Slow(metric, share, quantile) for quantile in metric.quantiles]
            case "parity":
                return [Pairs(metric, share, flips=False), Pairs(metric, share, flips=True)]
            case "users":
                return [Users(metric, share, event) for event in ("users_error", "users_nonfinite")]
            case "drift":
                return [Drift(metric, least)]
            case _:
                return [Custom(metric)]

    def add(self, row: Row) -> None:
        """Take the next row."""
        self._t, self._rows = row.t, self._rows + 1
        for test in self._tests:
            test.add(row)
            points = self._curves[test.name]
            if test.n > (_GROWTH * points[-1].n if points else 0):
                points.append(test.point(row.t))

    def prime(self, row: Row) -> None:
        """Learn from a row of before the analysis what stable is like (quantiles; rates, for a canary that has all traffic)."""
        for test in self._tests:
            test.prime(row)

    def judgement(self) -> Judgement:
        """Return where the canary stands."""
        metrics = tuple(test.judge() for test in self._tests)
        deciding = [metric.state for metric in metrics if metric.decides]
        state: State = "inconclusive"
        if "failed" in deciding:
            state = "failed"
        elif deciding and all(each == "passed" for each in deciding):
            state = "passed"
        compared = sum(metric.canary_n for metric in metrics)
        synthetic = sum(metric.canary_n * metric.synthetic_share for metric in metrics)
        share = synthetic / compared if compared else 0.0
        return Judgement(state=state, metrics=metrics, synthetic_share=share, t=self._t, rows=self._rows)

    def curve(self) -> dict[str, list[Point]]:
        """Return each test's points so far, by its name, the latest one as it is now."""
        found: dict[str, list[Point]] = {}
        for test in self._tests:
            points, last = self._curves[test.name], test.point(self._t)
            found[test.name] = [*points, last] if self._rows and (not points or points[-1] != last) else list(points)
        return found


def tests_of(metric: MetricSpec) -> int:
    """Return how many tests with a share of alpha a metric has."""
    if metric.prometheus is not None or metric.name not in _TESTS:
        return 0
    return len(metric.quantiles) if metric.name == "latency" else _TESTS[metric.name]


_TESTS: Final = {"error_rate": 1, "latency": 3, "nonfinite": 1, "saturated": 1, "parity": 2, "users": 2, "drift": 0}
