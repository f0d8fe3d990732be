"""The plan: the very object that `run` executes and that `plan` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

from orchestrator.plan.kinds import KINDS, Kind


class Action(StrEnum):
    """What happens to a step. `RUN*`: runs unless its inputs, once known, turn out to have been seen before."""

    RUN = "RUN"
    RUN_LATER = "RUN*"
    REUSE = "REUSE"
    RESUME = "RESUME"
    SKIP = "SKIP"


@dataclass(frozen=True, slots=True)
class Input:
    """An input by name: output `output` of step `step`."""

    name: str
    step: str
    output: str


@dataclass(frozen=True, slots=True)
class Retries:
    """How many further attempts each class of failure may cost."""

    user: int = 0
    infra: int = 3
    preemption: int = 10
    capacity: int = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """A step as the recipe wants it, before anyone looked at what is done.

    Attributes:
        spec: Resolved settings, JSON-ready, as the step's code receives them.
        inputs: Artifacts it takes.
        after: Steps that must have ended well before it, beyond those of its inputs.
        sources: Digest of each of the user's files that can change the output, by path relative to the recipe.
        data: Identity of each declared dataset: a digest or a version.
        timeout_s: 0 = none.
    """

    name: str
    kind: str
    site: str
    spec: Mapping[str, Any] = field(default_factory=dict[str, Any])
    inputs: tuple[Input, ...] = ()
    after: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    data: Mapping[str, str] = field(default_factory=dict[str, str])
    retries: Retries = Retries()
    timeout_s: float = 0.0

    @property
    def needs(self) -> tuple[str, ...]:
        """All steps that come before, without repeats."""
        return tuple(dict.fromkeys([*(i.step for i in self.inputs), *self.after]))

    @property
    def about(self) -> Kind:
        """The step's kind."""
        return KINDS[self.kind]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A draft with its decision.

    Attributes:
        reason: Why this action, in a few words: `train.py changed`.
        fingerprint: Digest of all that can change the output; None while an input is not known yet.
        parts: What the fingerprint was made of, so that a later miss can be explained.
        outputs: Digest by output name where a result is reused.
        result: The stored result where one is reused.
    """

    draft: Draft
    action: Action
    reason: str
    fingerprint: str | None = None
    parts: Mapping[str, Any] | None = None
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])
    result: Mapping[str, Any] | None = None
    refresh: bool = False

    @property
    def name(self) -> str:
        """The step's name."""
        return self.draft.name

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.action in {Action.REUSE, Action.SKIP}

    def to_json(self) -> dict[str, Any]:
        """Return what `plan --json` prints for the step; a deploy with its strategy."""
        strategy = self.draft.spec.get("strategy")
        return {
            "step": self.name,
            "kind": self.draft.kind,
            "site": self.draft.site,
            "action": str(self.action),
            "reason": self.reason,
            "needs": list(self.draft.needs),
            "fingerprint": self.fingerprint,
            "outputs": dict(self.outputs),
            **({"strategy": dict(strategy)} if strategy else {}),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run, in order."""

    recipe: str
    recipe_sha256: str
    environment_sha256: str
    steps: tuple[PlannedStep, ...]

    @property
    def all_reused(self) -> bool:
        """Whether nothing is left to do."""
        return all(step.is_done for step in self.steps)

    def step(self, name: str) -> PlannedStep:
        """Return a step by name."""
        return next(step for step in self.steps if step.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return what `plan --json` prints."""
        return {
            "recipe": self.recipe,
            "recipe_sha256": self.recipe_sha256,
            "environment_sha256": self.environment_sha256,
            "steps": [step.to_json() for step in self.steps],
        }


def draft_to_json(draft: Draft) -> dict[str, Any]:
    """Return the form that travels in a segment."""
    return {
        "name": draft.name,
        "kind": draft.kind,
        "site": draft.site,
        "spec": dict(draft.spec),
        "inputs": [{"name": i.name, "step": i.step, "output": i.output} for i in draft.inputs],
        "after": list(draft.after),
        "sources": dict(draft.sources),
        "data": dict(draft.data),
        "timeout_s": draft.timeout_s,
    }


def draft_from_json(data: Mapping[str, Any]) -> Draft:
    """Rebuild a draft that travelled; retry budgets stay with the engine."""
    inputs = cast("list[dict[str, str]]", data["inputs"])
    return Draft(
        name=str(data["name"]),
        kind=str(data["kind"]),
        site=str(data["site"]),
        spec=data["spec"],
        inputs=tuple(Input(i["name"], i["step"], i["output"]) for i in inputs),
        after=tuple(data["after"]),
        sources=data["sources"],
        data=data["data"],
        timeout_s=float(data["timeout_s"]),
    )
