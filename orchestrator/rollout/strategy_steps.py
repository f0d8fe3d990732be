"""The steps of a strategy, and their stored form: a mapping with one key, as in the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from orchestrator.rollout.evidence.spec import AnalysisSpec

How = Literal["exact", "prefix", "regex"]


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """A condition on a header; `header` is in lower case, a regex must match the whole value."""

    header: str
    how: How
    value: str


@dataclass(frozen=True, slots=True)
class SetWeight:
    """The canary gets this share of the requests, in percent."""

    weight: int
    kind: Literal["set_weight"] = "set_weight"


@dataclass(frozen=True, slots=True)
class SetMirror:
    """The canary gets copies of this share of stable's requests, in percent; 0 ends it."""

    percent: int
    kind: Literal["set_mirror"] = "set_mirror"


@dataclass(frozen=True, slots=True)
class SetHeaderRoute:
    """Requests with any of these headers go to the canary; none takes the route away."""

    matches: tuple[HeaderMatch, ...] = ()
    kind: Literal["set_header_route"] = "set_header_route"


@dataclass(frozen=True, slots=True)
class Pause:
    """A wait until both hold; with neither, until a person says go on."""

    duration_s: float | None = None
    min_requests: int | None = None
    kind: Literal["pause"] = "pause"

    @property
    def for_a_person(self) -> bool:
        """Whether only a person ends it."""
        return self.duration_s is None and self.min_requests is None


@dataclass(frozen=True, slots=True)
class Analysis:
    """A wait until the metrics have passed."""

    spec: AnalysisSpec
    kind: Literal["analysis"] = "analysis"


Step = SetWeight | SetMirror | SetHeaderRoute | Pause | Analysis


def step_to_json(step: Step) -> dict[str, Any]:
    """Return a step as a mapping with its one key, as in the recipe."""
    match step:
        case SetWeight():
            return {"set_weight": step.weight}
        case SetMirror():
            return {"set_mirror": {"percent": step.percent}}
        case SetHeaderRoute():
            return {"set_header_route": {"match": [{"header": m.header, m.how: m.value} for m in step.matches]}}
        case Pause():
            pairs = (("duration_s", step.duration_s), ("min_requests", step.min_requests))
            return {"pause": {name: value for name, value in pairs if value is not None}}
        case Analysis():
            return {"analysis": step.spec.to_json()}


def step_from_json(data: Mapping[str, Any]) -> Step:
    """Rebuild a step.

    Raises:
        ValueError: Not a step of this version.
    """
    key = next(iter(data), "")
    if len(data) == 1 and key == "set_weight":
        return SetWeight(int(data[key]))
    if len(data) != 1 or not isinstance(data[key], Mapping):
        raise ValueError(f"not a step of a rollout: {dict(data)}")
    body = cast("Mapping[str, Any]", data[key])
    if key == "set_mirror":
        return SetMirror(int(body["percent"]))
    if key == "set_header_route":
        return SetHeaderRoute(tuple(_match(row) for row in cast("Sequence[Mapping[str, str]]", body["match"])))
    if key == "pause":
        return Pause(body.get("duration_s"), body.get("min_requests"))
    if key == "analysis":
        return Analysis(AnalysisSpec.from_json(body))
    raise ValueError(f"not a step of a rollout: {dict(data)}")


def _match(row: Mapping[str, str]) -> HeaderMatch:
    how = next(how for how in ("exact", "prefix", "regex") if how in row)
    return HeaderMatch(row["header"], cast("How", how), row[how])
