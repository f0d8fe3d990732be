"""What a judge says: of each test, and of all together."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["passed", "failed", "inconclusive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricJudgement:
    """One test: a metric, or one quantile of it.

    Attributes:
        name: error_rate, latency_p99, ...
        metric: The metric of the strategy that it belongs to.
        e_value: Natural logarithm of the evidence that the canary is worse.
        threshold: Natural logarithm of the evidence at which the canary has failed.
        upper: Bound of (canary - stable) that holds at every look with chance 1 - alpha; 1 without data.
        margin: It must be below this to pass.
        canary_n: Requests (pairs, users, batches, answers of Prometheus) of the canary that were compared.
        canary_rate: Share of them that were events; what the query has answered for a custom metric.
        needs: Requests of the canary until the margin is cleared if the rates stay as they are; None where they never would be.
        synthetic_share: Which part of canary_n are replayed golden samples.
        text: One plain sentence.
        decides: False for dry runs and warnings: the verdict of the rollout leaves it out.
        warning: What to look at although nothing has failed.
    """

    name: str
    metric: str
    state: State
    e_value: float = 0.0
    threshold: float = 0.0
    upper: float = 1.0
    margin: float = 0.0
    canary_n: int = 0
    stable_n: int = 0
    canary_rate: float = 0.0
    stable_rate: float = 0.0
    needs: int | None = None
    synthetic_share: float = 0.0
    text: str = ""
    decides: bool = True
    warning: str = ""

    def point(self, t: float) -> Point:
        """Return the point of the curve that it is."""
        return Point(t, self.canary_n, self.e_value, self.upper, self.margin, self.threshold)

    def to_json(self) -> dict[str, Any]:
        """Return the stored form; numbers that JSON lacks are null."""
        return {name: value if _plain(value) else None for name, value in asdict(self).items()}


def _plain(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The verdict: failed where one test has, passed where all have, else inconclusive.

    Attributes:
        metrics: In the order of the strategy.
        synthetic_share: Which part of the canary's compared requests are replayed golden samples.
        t: Time of the last row, unix seconds; 0 without any.
        rows: How many rows were judged.
    """

    state: State
    metrics: tuple[MetricJudgement, ...]
    synthetic_share: float = 0.0
    t: float = 0.0
    rows: int = 0

    @property
    def text(self) -> str:
        """The sentence of what decides: of the first that has failed, else of the first that is not yet passed."""
        for state in ("failed", "inconclusive"):
            for metric in self.metrics:
                if metric.decides and metric.state == state:
                    return metric.text
        return "all metrics have passed" if self.state == "passed" else "nothing decides"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to look at although it has not decided."""
        return tuple(metric.warning for metric in self.metrics if metric.warning)

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        return {
            "state": self.state,
            "text": self.text,
            "t": self.t,
            "rows": self.rows,
            "synthetic_share": self.synthetic_share,
            "metrics": [metric.to_json() for metric in self.metrics],
        }


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a test's curve.

    Attributes:
        t: Unix seconds.
        n: The canary's requests so far.
        log_e: See `MetricJudgement.e_value`.
        upper: See `MetricJudgement.upper`.
    """

    t: float
    n: int
    log_e: float
    upper: float
    margin: float
    threshold: float

    def to_json(self) -> dict[str, float]:
        """Return the stored form."""
        return asdict(self)
