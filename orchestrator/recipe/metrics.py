"""How a rollout is judged, as the recipe says it: metrics with their margins, and the analyses that watch them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self, cast

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from orchestrator.recipe.fields import Duration, Flag, Model, Text, Uri, Whole, Word
from orchestrator.recipe.metric_names import METRIC_NAMES
from orchestrator.recipe.problems import did_you_mean, show

_MOST_SAMPLES = 10_000_000


def wrong(message: str) -> PydanticCustomError:
    """Return an error whose text is not taken for a template."""
    return PydanticCustomError("wrong_value", "{text}", {"text": message})


Samples = Annotated[int, Field(strict=True, ge=1, le=_MOST_SAMPLES)]
QUANTILES: Final = (0.5, 0.9, 0.99)


def _quantile(value: float) -> float:
    if value not in QUANTILES:
        raise wrong(f"{show(value)} is not one of {', '.join(map(str, QUANTILES))}")
    return value


Quantile = Annotated[
    float, Field(strict=True), AfterValidator(_quantile), Field(json_schema_extra={"enum": list(QUANTILES)})
]
Margin = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]


class Prometheus(Model):
    """A query that a Prometheus server answers."""

    address: Uri = Field(description="http:// or https:// address of the server. Never with credentials.")
    query: Text = Field(
        description="PromQL. {{endpoint}}, {{pool}}, {{stable}} and {{canary}} (generation numbers) are filled in.",
        min_length=1,
        max_length=4096,
    )

    @model_validator(mode="after")
    def _over_http(self) -> Self:
        if not self.address.startswith(("http://", "https://")):
            raise wrong(f"{show(self.address)} is not an http:// or https:// address")
        return self


_OF_QUERIES = (
    "interval",
    "success_condition",
    "failure_condition",
    "failure_limit",
    "inconclusive_limit",
    "consecutive_error_limit",
)
_OF_OURS: dict[str, tuple[str, ...]] = {
    "quantiles": ("latency",),
    "rtol": ("parity",),
    "atol": ("parity",),
}


class Metric(Model):
    """One metric: one of ours by name, compared with the stable generation, or a Prometheus query with conditions."""

    name: Word = Field(description=f"One of {', '.join(METRIC_NAMES)}; or a name of your own for a `prometheus` query.")
    margin: Margin | None = Field(
        None,
        description="How much worse than stable the canary may be, as a share of requests; promotion needs the upper bound "
        "of the difference below it. Absent: 0.01 error_rate and users, 0.05 latency (at most 1 - q for a quantile q), 0.005 "
        "parity, 0.001 nonfinite and saturated; drift only warns, above an index of 0.25.",
    )
    min_samples: Samples | None = Field(
        None, description="Requests of the canary before it is judged good; the analysis' own when absent."
    )
    quantiles: tuple[Quantile, ...] | None = Field(
        None,
        min_length=1,
        description="latency: which quantiles of stable must not be exceeded more often; all when absent.",
    )
    rtol: Annotated[float, Field(strict=True, ge=0, le=1)] | None = Field(
        None, description="parity: relative difference at which two numbers still agree; 0.001 when absent."
    )
    atol: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = Field(
        None, description="parity: absolute difference at which two numbers still agree; 0.001 when absent."
    )
    dry_run: Flag = Field(False, description="Measured and shown; decides nothing.")
    prometheus: Prometheus | None = Field(None, description="Where the number of a metric of your own comes from.")
    interval: Duration | None = Field(None, description="prometheus: how often it is asked; 10s when absent.")
    success_condition: Text | None = Field(
        None, description="prometheus: e.g. `result >= 0.95`. With neither condition true, or none given: inconclusive."
    )
    failure_condition: Text | None = Field(None, description="prometheus: e.g. `result < 0.9`.")
    failure_limit: Whole | None = Field(
        None, ge=0, le=1000, description="prometheus: failed answers that are borne; one more fails. 0 when absent."
    )
    inconclusive_limit: Whole | None = Field(
        None, ge=0, le=1000, description="prometheus: inconclusive answers that are borne; 0 when absent."
    )
    consecutive_error_limit: Whole | None = Field(
        None, ge=0, le=1000, description="prometheus: errors in a row that are borne; 4 when absent."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        if self.prometheus is None:
            if self.name not in METRIC_NAMES:
                near = did_you_mean(self.name, METRIC_NAMES)
                raise wrong(f"there is no metric {show(self.name)}{near}; one of your own needs `prometheus`")
            alien = next((key for key in _OF_QUERIES if key in given), None)
            if alien:
                raise wrong(f"`{alien}` is for a metric with `prometheus`; {self.name} is judged by its `margin`")
            self._check_ours(given)
            return self
        if self.name in METRIC_NAMES:
            raise wrong(f"{self.name} is measured by the router; give the query another name")
        alien = next((key for key in ("margin", "min_samples", *_OF_OURS) if key in given), None)
        if alien:
            raise wrong(f"`{alien}` is not for a `prometheus` query; it is judged by its conditions")
        return self

    def _check_ours(self, given: set[str]) -> None:
        for key, names in _OF_OURS.items():
            if key in given and self.name not in names:
                raise wrong(f"`{key}` is for {' and '.join(names)}, not for {self.name}")
        if self.quantiles is not None and len(set(self.quantiles)) != len(self.quantiles):
            raise wrong(f"quantiles repeat: {list(self.quantiles)}")

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        full = handler(core)
        return {"anyOf": [{"type": "string", "enum": list(METRIC_NAMES)}, full]}


def _distinct(metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
    names = [metric.name for metric in metrics]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise wrong(f"the metric `{twice}` stands twice")
    return metrics


def _listed(value: object) -> object:
    # A single word is a common slip; the message of a list type would not say what to write.
    if isinstance(value, str):
        raise wrong(f"metrics are a list: [{value}]")
    return cast("Any", value)


Metrics = Annotated[tuple[Metric, ...], BeforeValidator(_listed), AfterValidator(_distinct), Field(min_length=1)]


class StepAnalysis(Model):
    """An analysis as a step: the rollout waits here until it has passed."""

    metrics: Metrics = Field(description="Names, or mappings with a name and limits.")
    min_samples: Samples | None = Field(
        None, description="Requests of the canary (or pairs) before anything is judged good; 100 when absent."
    )
    alpha: Annotated[float, Field(strict=True, gt=0, le=0.5)] = Field(
        0.05, description="Chance of a false alarm, over all metrics together and however often one looks."
    )


class BackgroundAnalysis(StepAnalysis):
    """An analysis beside the steps: a failure ends the rollout at any time, and it must have passed at the end."""

    starting_step: Whole = Field(0, ge=0, le=1000, description="Index of the step from which it watches, from 0.")
    interval: Duration = Field(1.0, description="How often the counts are read and judged.")


class Kill(Model):
    """What ends a rollout at once, without statistics."""

    failures_in_row: Annotated[int, Field(strict=True, ge=1, le=100_000)] | None = Field(
        20, description="This many requests to the canary failed one after another; null: never."
    )
    restarts: Annotated[int, Field(strict=True, ge=1, le=1000)] | None = Field(
        3, description="A replica of the canary was started again this often; null: never."
    )
    latency_ceiling: Duration | None = Field(
        None, description="The median of the canary's last answers takes longer, e.g. 500ms; never when absent."
    )
