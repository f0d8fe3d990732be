"""The recipe's `rollout:` block: where the model is served, and how a new generation takes over from the old.

Steps mean what they mean in Argo Rollouts (`setWeight`, `pause`, `analysis`, ...), in snake_case.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from orchestrator.core.patterns import safe_pattern
from orchestrator.recipe.fields import Duration, Flag, Model, Name, Number, Text, Whole, Word
from orchestrator.recipe.metrics import BackgroundAnalysis, Kill, Samples, StepAnalysis, wrong
from orchestrator.recipe.problems import show

_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")  # a token of RFC 9110, 5.6.2
_MOST_STEPS: Final = 100
_STRATEGIES: Final = ("canary", "blue_green", "direct")
_STEP_KEYS: Final = ("set_weight", "set_mirror", "set_header_route", "pause", "analysis")


def _header(value: str) -> str:
    if not _HEADER.fullmatch(value):
        raise wrong(f"{show(value)} is no name of a header")
    return value.lower()


def _pattern(value: str) -> str:
    try:
        safe_pattern(value)
    except ValueError as error:
        raise wrong(str(error)) from error
    return value


Header = Annotated[Text, AfterValidator(_header), Field(examples=["x-canary"])]
Percent = Annotated[int, Field(strict=True, ge=0, le=100)]
HeaderText = Annotated[Text, Field(min_length=1, max_length=256)]


def written(owner: Model, names: tuple[str, ...]) -> list[str]:
    """Return which of the fields the file has, even empty ones; a stored model has all, and there the empty ones are absent."""
    present = [name for name in names if name in owner.model_fields_set]
    return [name for name in present if getattr(owner, name) is not None] if len(present) == len(names) else present


class HeaderMatch(Model):
    """A condition on one header of the request (in gRPC: of its metadata)."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 2, "maxProperties": 2})

    header: Header = Field(description="Name of the header, in any case.")
    exact: HeaderText | None = Field(None, description="The value is this.")
    prefix: HeaderText | None = Field(None, description="The value begins with this.")
    regex: Annotated[Text, AfterValidator(_pattern)] | None = Field(
        None, description="The whole value matches; at most 128 characters, no repeated groups."
    )

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        given = [name for name in ("exact", "prefix", "regex") if getattr(self, name) is not None]
        if len(given) != 1:
            raise wrong(f"give exactly one of `exact`, `prefix`, `regex`; there is {' and '.join(given) or 'none'}")
        return self

    @property
    def how(self) -> Literal["exact", "prefix", "regex"]:
        """Which of the three conditions it is."""
        return "exact" if self.exact is not None else "prefix" if self.prefix is not None else "regex"

    @property
    def value(self) -> str:
        """What the header's value is compared with."""
        return self.exact or self.prefix or self.regex or ""


class HeaderRoute(Model):
    """Requests that go to the canary whatever the weight is."""

    match: tuple[HeaderMatch, ...] = Field(
        (), max_length=16, description="Any of these; empty or absent takes an earlier route away."
    )


class Mirror(Model):
    """Copies of stable's requests that the canary answers too; clients never see its answers."""

    percent: Percent = Field(description="Share of stable's requests, 0 to 100; 0 ends mirroring.")


class Pause(Model):
    """A wait. With nothing in it: until `orchestrate rollout resume` (a human gate)."""

    duration: Duration | None = Field(None, description="How long at least, e.g. 10s.")
    min_requests: Samples | None = Field(
        None, description="Requests that the canary must have answered since the step began; both must hold."
    )


class Step(Model):
    """One step of a canary: a mapping with exactly one key."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    set_weight: Percent | None = Field(None, description="Share of the requests that the canary gets, 0 to 100.")
    set_mirror: Mirror | None = Field(None, description="Give the canary copies of stable's requests.")
    set_header_route: HeaderRoute | None = Field(None, description="Send requests with a header to the canary.")
    pause: Pause | None = Field(None, description="Wait; `pause: {}` waits for a person.")
    analysis: StepAnalysis | None = Field(None, description="Wait until the metrics have passed.")

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        given = written(self, _STEP_KEYS)
        if len(given) != 1:
            found = f"are {len(given)}: {', '.join(given)}" if given else "is none"
            raise wrong(f"a step has exactly one key of {', '.join(_STEP_KEYS)}; here {found}")
        if getattr(self, given[0]) is None:
            empty = "a number from 0 to 100" if given[0] == "set_weight" else "a mapping"
            gate = "; `pause: {}` waits for a person" if given[0] == "pause" else ""
            raise wrong(f"`{given[0]}` needs {empty}{gate}")
        return self

    @property
    def key(self) -> str:
        """The step's one key."""
        return next(key for key in _STEP_KEYS if getattr(self, key) is not None)


class Sticky(Model):
    """Whose requests stay on one side: a growing canary never moves anyone back."""

    header: Header = Field(description="Header whose value tells one user or session from another.")


class OnInconclusive(Model):
    """What happens when there are too few requests to judge."""

    extend: Whole = Field(2, ge=0, le=1000, description="How often the step is given its time again.")
    then: Literal["pause", "rollback"] = Field(
        "pause", description="pause: keep the weights and wait for a person (exit 5); rollback: end the rollout."
    )


class Canary(Model):
    """A growing share of the requests, step by step."""

    steps: tuple[Step, ...] = Field(
        min_length=1, max_length=_MOST_STEPS, description="In order; after the last: 100 %."
    )
    sticky: Sticky | None = Field(
        None, description="Keep each user on one side; requests are dealt out one by one when absent."
    )
    analysis: BackgroundAnalysis | None = Field(None, description="Watches beside the steps.")
    kill: Kill = Field(Kill(), description="What ends the rollout at once.")  # pyright: ignore[reportCallIssue]
    on_inconclusive: OnInconclusive = Field(OnInconclusive(), description="When there are too few requests.")  # pyright: ignore[reportCallIssue]

    @model_validator(mode="after")
    def _starts_within(self) -> Self:
        if self.analysis is not None and self.analysis.starting_step >= len(self.steps):
            raise wrong(
                f"analysis.starting_step is {self.analysis.starting_step}, and the last step is {len(self.steps) - 1}"
            )
        return self


class BlueGreen(Model):
    """The new generation is proven beside the old one, then takes all requests at once."""

    preview: HeaderRoute | None = Field(None, description="Requests that see the new generation before the switch.")
    pre_promotion_analysis: StepAnalysis | None = Field(
        None, description="Must have passed before the switch; parity and drift look at copies of all requests."
    )
    post_promotion_analysis: StepAnalysis | None = Field(
        None, description="Must have passed after the switch, while the old generation stays loaded."
    )
    auto_promote: Flag = Field(True, description="false: a person makes the switch (`orchestrate rollout resume`).")
    scale_down_delay: Duration = Field(30.0, description="How long the old generation stays loaded after the switch.")
    kill: Kill = Field(Kill(), description="What ends the rollout at once.")  # pyright: ignore[reportCallIssue]
    on_inconclusive: OnInconclusive = Field(OnInconclusive(), description="When there are too few requests.")  # pyright: ignore[reportCallIssue]


class Direct(Model):
    """The new generation takes all requests as soon as it has answered its golden samples."""


class PromoteFrom(Model):
    """Where a promotion may be asked for besides the command line."""

    alias: Word = Field(description="Alias of the model in MLflow: moving it asks for a rollout.")


class Probe(Model):
    """Golden samples that are replayed while an analysis waits, so that a quiet endpoint can be judged."""

    rate: Annotated[Number, Field(gt=0, le=1000)] = Field(
        description="Requests per second, to each of the two generations; marked synthetic in the evidence."
    )


class Rollout(Model):
    """Where the model is served, and how a new generation takes over."""

    endpoint: Name = Field(description="Name that clients call.")
    pool: Name = Field(description="Pool of the environment that serves it.")
    canary: Canary | None = Field(None, description="Step by step; or `blue_green`, or `direct`.")
    blue_green: BlueGreen | None = Field(None, description="All at once, after a proof.")
    direct: Direct | None = Field(None, description="All at once; the default.")
    on_failure: Literal["rollback", "pause"] = Field(
        "rollback", description="rollback: all requests go back to stable at once; pause: the weights stay as they are."
    )
    keep: Whole = Field(2, ge=1, le=100, description="Former generations whose files stay on disk for a rollback.")
    progress_deadline: Duration = Field(
        600.0, description="A rollout that makes no step for so long, and waits for nobody, has failed."
    )
    promote_from: PromoteFrom | None = Field(None, description="Promotion from MLflow; none when absent.")
    probe: Probe | None = Field(None, description="Replay golden samples; none when absent.")
    approvals: Whole = Field(
        0, ge=0, le=16, description="People, each with a token of their own, who must approve before it goes live."
    )

    @model_validator(mode="after")
    def _one_strategy(self) -> Self:
        given = written(self, _STRATEGIES)
        if len(given) > 1:
            raise wrong(f"give one of {', '.join(_STRATEGIES)}; there are {' and '.join(given)}")
        if given and getattr(self, given[0]) is None:
            fix = "write `direct: {}`" if given[0] == "direct" else "say how, or leave it out"
            raise wrong(f"`{given[0]}` is empty; {fix}")
        return self

    @property
    def kind(self) -> Literal["canary", "blue_green", "direct"]:
        """Which strategy it is."""
        return "canary" if self.canary is not None else "blue_green" if self.blue_green is not None else "direct"
