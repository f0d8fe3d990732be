"""Drift of the predicted classes: a warning. Without labels it cannot tell a better model from a worse one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from orchestrator.rollout.evidence.judgement import MetricJudgement, Point
from orchestrator.rollout.evidence.rows import Delta, Row
from orchestrator.rollout.evidence.spec import MetricSpec

_LEAST: Final = 200
"""Answers of each side before it says anything."""
_MOST_CLASSES: Final = 1024
_SIDES: Final = ("canary", "stable")


class Drift:
    """Compares the histograms of top classes: population stability index and Jensen-Shannon divergence.

    PSI of two samples of one distribution is about (classes - 1) (1 / n1 + 1 / n0) on average, which is taken off before it is compared
    with the limit (Yurdakul, Naranjo 2020).
    """

    def __init__(self, spec: MetricSpec, min_samples: int) -> None:
        self.name, self.spec = spec.name, spec
        self._least = max(_LEAST, min_samples)
        self._counts: dict[str, dict[str, int]] = {side: {} for side in _SIDES}

    def add(self, row: Row) -> None:
        """Take the classes of a row."""
        if isinstance(row, Delta):
            for side in _SIDES:
                counts = self._counts[side]
                for place, count in row.classes.get(side, {}).items():
                    if place in counts or len(counts) < _MOST_CLASSES:
                        counts[place] = counts.get(place, 0) + count

    def prime(self, row: Row) -> None:
        """Nothing: both sides are compared over the same time."""

    @property
    def n(self) -> float:
        """Sampled answers of the canary."""
        return float(sum(self._counts["canary"].values()))

    def point(self, t: float) -> Point:
        """Return where the curve stands."""
        return self.judge().point(t)

    def judge(self) -> MetricJudgement:
        """Return where it stands; always passed."""
        totals = {side: sum(self._counts[side].values()) for side in _SIDES}
        enough = min(totals.values()) >= self._least
        psi, js, noise = divergences(self._counts["canary"], self._counts["stable"]) if enough else (0.0, 0.0, 0.0)
        index = max(0.0, psi - noise)
        seen = f"PSI {psi:.3g}, of which chance about {noise:.2g}; Jensen-Shannon {js:.3g} bit"
        text = seen if enough else f"{min(totals.values())} of {self._least} sampled answers of each side yet"
        warns = index > self.spec.limit
        return MetricJudgement(
            name=self.name,
            metric=self.spec.name,
            state="passed",
            upper=index,
            margin=self.spec.limit,
            canary_n=totals["canary"],
            stable_n=totals["stable"],
            canary_rate=index,
            needs=0,
            text=f"{self.name}: {text}",
            decides=False,
            warning=f"the canary predicts other classes than stable: {seen}, limit {self.spec.limit:g}"
            if warns
            else "",
        )


def divergences(left: Mapping[str, int], right: Mapping[str, int]) -> tuple[float, float, float]:
    """Return the stability index (nats), the Jensen-Shannon divergence (bit) and the index that chance alone would give.

    Half a count is added to each class, so that an empty one is no infinity.
    """
    classes = sorted(left.keys() | right.keys())
    totals = [sum(side.values()) + len(classes) / 2 for side in (left, right)]
    psi = js = 0.0
    for place in classes:
        p, q = (left.get(place, 0) + 0.5) / totals[0], (right.get(place, 0) + 0.5) / totals[1]
        psi += (p - q) * math.log(p / q)
        middle = (p + q) / 2
        js += (p * math.log2(p / middle) + q * math.log2(q / middle)) / 2
    return psi, js, max(0, len(classes) - 1) * (1 / totals[0] + 1 / totals[1])
