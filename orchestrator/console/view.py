"""What the pages show, gathered and judged, before it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.console.charts import Chart

Tone = Literal["good", "bad", "warn", "busy", "calm"]


@dataclass(frozen=True, slots=True)
class Badge:
    """A state in one word; the tone colours it and never says more than the word."""

    text: str
    tone: Tone


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficView:
    """What a generation did in the last `window_s` seconds; times in ms, None without requests."""

    window_s: float
    requests_per_s: float
    errors_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    compute_p50_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationView:
    """One generation. `part` is its part in the comparison; `ready` is None where the router does not know it."""

    number: int
    badge: Badge
    kind: str
    bundle: str
    device: str
    actor: str
    reason: str
    created_at: float
    error: str
    weight: int
    part: Literal["stable", "canary", ""]
    ready: int | None
    queued: int
    in_flight: int
    traffic: TrafficView | None


@dataclass(frozen=True, slots=True)
class ArmView:
    """What the routers counted of one kind of traffic to one generation since they started to compare."""

    generation: int
    traffic: str
    requests: int
    errors: int
    shared: int
    fell_back: int
    refused: int
    nonfinite: int
    saturated: int


@dataclass(frozen=True, slots=True)
class PairsView:
    """Copies of requests that both generations answered."""

    compared: int
    agree: int
    top1: int
    flips: int
    dropped: int
    failed: int


@dataclass(frozen=True, slots=True)
class StepView:
    """One step of the walk."""

    text: str
    state: Literal["done", "now", "next"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricView:
    """What the evidence says on one metric; one that does not decide only warns."""

    name: str
    badge: Badge
    text: str
    warning: str
    decides: bool
    canary: str
    stable: str
    needs: str
    synthetic_share: float
    evidence: Chart | None
    bound: Chart | None


@dataclass(frozen=True, slots=True)
class ApprovalView:
    """Who approved or rejected, and why."""

    identity: str
    decision: str
    reason: str
    t: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutView:
    """A rollout, under way or ended."""

    generation: int
    stable: int
    kind: str
    badge: Badge
    active: bool
    steps: tuple[StepView, ...]
    weight: int
    mirror: int
    headers: tuple[str, ...]
    sticky: str
    waiting: str
    waiting_since: float | None
    waits_for_person: bool
    intent: str
    led_by: str
    error: str
    verdict: Badge | None
    judged: str
    synthetic_share: float
    metrics: tuple[MetricView, ...]
    approvals: tuple[ApprovalView, ...]
    approvals_wanted: int
    approvals_given: int
    bundle: str
    actor: str
    reason: str
    started_at: float
    ended_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointView:
    """One endpoint. `site_error` says why nothing is known of its traffic; empty when all is."""

    name: str
    badge: Badge
    url: str
    site: str
    pool: str
    device: str
    rehearsal: bool
    live: int
    generations: tuple[GenerationView, ...]
    older: int
    split: tuple[GenerationView, ...]
    arms: tuple[ArmView, ...]
    pairs: PairsView | None
    rollout: RolloutView | None
    past: tuple[RolloutView, ...]
    targets: tuple[int, ...]
    site_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRow:
    """A line of the list of endpoints."""

    name: str
    badge: Badge
    live: int
    bundle: str
    device: str
    rehearsal: bool
    site: str
    pool: str
    rollout: str
    rollout_badge: Badge | None
