"""Rows of rollouts: where the walk from one generation to the next stands, and what was counted on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Json = Mapping[str, Any]
Intent = Literal["pause", "resume", "abort", "promote"]
"""What an operator can ask of a rollout; `promote` skips the steps that are left."""


def _nothing() -> Json:
    return {}


class RolloutState(StrEnum):
    """Where a rollout stands; `paused` waits for a person."""

    PROGRESSING = "progressing"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    ABORTED = "aborted"

    @property
    def active(self) -> bool:
        """Whether it may still move."""
        return self in (RolloutState.PROGRESSING, RolloutState.PAUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout; its controller writes it, operators write `intent` and `approvals`.

    Attributes:
        generation: The canary.
        stable: The generation that was live when it began; 0 = none.
        strategy: The resolved strategy, JSON.
        step: Index of the step that it is in; the number of steps when all are done.
        step_started_at: When it came to this step, UTC seconds of the ledger's clock.
        progressed_at: When it last moved on, for the progress deadline.
        weight: Percent of the endpoint's requests that the canary shall get.
        mirror: Percent of the stable's requests of which the canary shall get a copy.
        headers: Header routes to the canary, JSON.
        waiting: What it waits for: {kind, text, since}; None where it does not.
        verdict: The last judgement, JSON.
        error: Why it was aborted.
        intent: What an operator has asked and the controller has not done yet; empty = nothing.
        approvals: {identity, decision, step, bundle, reason, t}, oldest first.
        notes: What the controller remembers from one look to the next.
    """

    endpoint: str
    generation: int
    site: str
    pool: str
    stable: int
    strategy: Json
    actor: str
    reason: str = ""
    state: RolloutState = RolloutState.PROGRESSING
    step: int = 0
    step_started_at: float = 0.0
    progressed_at: float = 0.0
    weight: int = 0
    mirror: int = 0
    headers: tuple[Json, ...] = ()
    waiting: Json | None = None
    verdict: Json | None = None
    error: Json | None = None
    started_at: float = 0.0
    ended_at: float | None = None
    intent: str = ""
    approvals: tuple[Json, ...] = ()
    notes: Json = field(default_factory=_nothing)


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """What was counted between two looks; `seq` grows by one within a rollout."""

    seq: int
    t: float
    body: Json
