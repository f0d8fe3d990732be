"""What a strategy says about its analyses, resolved: every default is filled in here, so that a stored strategy is whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self, cast

METRICS: Final = ("error_rate", "latency", "nonfinite", "saturated", "parity", "users", "drift")
"""Names of the metrics that routers measure; every other name is a Prometheus query."""

QUANTILES: Final = (0.5, 0.9, 0.99)
DEFAULT_MARGIN: Final[Mapping[str, float]] = {
    "error_rate": 0.01,
    "latency": 0.05,
    "nonfinite": 0.001,
    "saturated": 0.001,
    "parity": 0.005,
    "users": 0.01,
    "drift": 0.25,
}
"""How much worse the canary may be, in shares of requests (of users for `users`); `drift` warns above this index."""


@dataclass(frozen=True, slots=True)
class PrometheusSpec:
    """A query of a Prometheus server.

    Attributes:
        address: http:// or https:// address of the server.
        query: PromQL; `{{endpoint}}`, `{{pool}}`, `{{stable}}` and `{{canary}}` are filled in before it is sent.
    """

    address: str
    query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """One metric of an analysis.

    Attributes:
        name: One of `METRICS`, or any name when `prometheus` is given.
        margin: How much worse than stable the canary may be, as a share; None = `DEFAULT_MARGIN`. Promotion needs the upper bound of
            the difference below it. A quantile q of latency has `min(margin, 2 * (1 - q))`: at most three times as many slow answers.
        min_samples: Requests (pairs, users, batches) of the canary before it is judged good; None = the analysis'.
        quantiles: latency: which quantiles of stable the canary must not exceed more often.
        rtol: parity: relative difference at which two numbers still agree (the router compares; kept here for the table).
        atol: parity: absolute difference.
        dry_run: Measured and shown; decides nothing, and takes no share of alpha.
        prometheus: Where a custom metric's number comes from.
        interval_s: prometheus: how often it is asked.
        success_condition: prometheus: see `conditions`.
        failure_condition: prometheus: see `conditions`.
        failure_limit: prometheus: failed answers that are borne; one more fails.
        inconclusive_limit: prometheus: inconclusive answers that are borne; with one more it cannot pass.
        consecutive_error_limit: prometheus: errors in a row that are borne; with one more it cannot pass.
    """

    name: str
    margin: float | None = None
    min_samples: int | None = None
    quantiles: tuple[float, ...] = QUANTILES
    rtol: float = 1e-3
    atol: float = 1e-3
    dry_run: bool = False
    prometheus: PrometheusSpec | None = None
    interval_s: float = 10.0
    success_condition: str = ""
    failure_condition: str = ""
    failure_limit: int = 0
    inconclusive_limit: int = 0
    consecutive_error_limit: int = 4

    @property
    def limit(self) -> float:
        """The margin, or its default."""
        return DEFAULT_MARGIN.get(self.name, 0.0) if self.margin is None else self.margin

    def to_json(self) -> dict[str, Any]:
        """Return the stored form: only what differs from the defaults, and the name."""
        plain = asdict(self)
        defaults = asdict(MetricSpec(name=self.name))
        kept = {key: value for key, value in plain.items() if key == "name" or value != defaults[key]}
        return kept | ({"quantiles": list(self.quantiles)} if "quantiles" in kept else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a metric; absent fields take their defaults, unknown ones are left out."""
        known = {key: value for key, value in data.items() if key in cls.__dataclass_fields__}
        if known.get("prometheus") is not None:
            known["prometheus"] = PrometheusSpec(**cast("Mapping[str, str]", known["prometheus"]))
        if "quantiles" in known:
            known["quantiles"] = tuple(float(q) for q in known["quantiles"])
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisSpec:
    """An analysis: metrics that are judged together.

    Attributes:
        metrics: At least one.
        alpha: Chance of a false alarm, over all metrics together and however often one looks; shared evenly by the tests.
        min_samples: Requests of the canary before any metric is judged good, unless the metric says otherwise.
        starting_step: Analysis beside the steps: from which step on it watches.
        interval_s: How often the counts are read.
    """

    metrics: tuple[MetricSpec, ...]
    alpha: float = 0.05
    min_samples: int = 100
    starting_step: int = 0
    interval_s: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        return {
            "metrics": [metric.to_json() for metric in self.metrics],
            "alpha": self.alpha,
            "min_samples": self.min_samples,
            "starting_step": self.starting_step,
            "interval_s": self.interval_s,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild an analysis; absent fields take their defaults, unknown ones are left out."""
        known: dict[str, Any] = {key: value for key, value in data.items() if key in cls.__dataclass_fields__}
        rows = cast("Sequence[Mapping[str, Any]]", known.get("metrics", ()))
        known["metrics"] = tuple(MetricSpec.from_json(row) for row in rows)
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class KillSpec:
    """What ends a rollout at once, without statistics. None = never.

    Attributes:
        failures_in_row: So many requests to the canary failed one after another.
        restarts: Replicas of the canary were started again so often.
        latency_ceiling_s: The median of the canary's last answers (20 or more) took longer.
    """

    failures_in_row: int | None = 20
    restarts: int | None = 3
    latency_ceiling_s: float | None = None
    least_answers: int = field(default=20, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild; absent fields take their defaults, unknown ones are left out."""
        return cls(**{key: value for key, value in data.items() if key in cls.__dataclass_fields__})
