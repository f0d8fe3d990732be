"""A page in full, without a ledger or a site behind it."""

from __future__ import annotations

import math
import random
from typing import Any

from orchestrator.console.charts import draw
from orchestrator.console.view import (
    ApprovalView,
    ArmView,
    Badge,
    EndpointRow,
    EndpointView,
    GenerationView,
    MetricView,
    PairsView,
    RolloutView,
    StepView,
    TrafficView,
)

T = 1_790_000_000.0


def metric(name: str, state: str, tone: Any, margin: float, seed: int, text: str) -> MetricView:
    rng = random.Random(seed)
    xs = [20.0 * k for k in range(1, 90)]
    bound = [min(0.9 / math.sqrt(x) + rng.uniform(0, margin / 9), 4 * margin) for x in xs]
    evidence = [rng.gauss(0, 0.3) - 0.4 + x / 6000 for x in xs]
    return MetricView(
        name=name,
        badge=Badge(state, tone),
        text=text,
        warning="",
        decides=True,
        canary="0.4 % of 1.78k",
        stable="0.38 % of 16k",
        needs="" if state == "passed" else "about 620 more requests to clear the margin",
        synthetic_share=0.12,
        evidence=draw(f"{name}: evidence", xs, evidence, math.log(1 / 0.0125), "fails above"),
        bound=draw(f"{name}: bound", xs, bound, margin, "margin", percent=True),
    )


def generation(number: int, state: str, tone: Any, weight: int | None, part: Any, **changes: Any) -> GenerationView:
    values: dict[str, Any] = {
        "number": number,
        "badge": Badge(state, tone),
        "kind": "promote",
        "bundle": "sha256:" + f"{number:x}" * 64,
        "device": "cpu (rehearsal)",
        "actor": "ada",
        "reason": "run x0mq3v8kd2",
        "created_at": T - 90_000 / number,
        "error": "",
        "weight": weight or 0,
        "part": part,
        "ready": None if weight is None else 2,
        "queued": 0,
        "in_flight": 3,
        "traffic": TrafficView(
            window_s=58, requests_per_s=112.4, errors_per_s=0.04, p50_ms=3.21, p99_ms=11.8, compute_p50_ms=1.4
        )
        if weight is not None
        else None,
    }
    return GenerationView(**{**values, **changes})


def rollout(**changes: Any) -> RolloutView:
    steps = ("mirror 100 %", "analysis (parity)", "5 %", "analysis (error_rate, latency)", "25 %", "pause for a person")
    states: Any = ("done", "done", "done", "now", "next", "next", "next", "next")
    values: dict[str, Any] = {
        "generation": 4,
        "stable": 3,
        "kind": "canary",
        "badge": Badge("progressing", "busy"),
        "active": True,
        "steps": tuple(map(StepView, (*steps, "2 approvals", "live"), states)),
        "weight": 5,
        "mirror": 100,
        "headers": ("x-canary = yes",),
        "sticky": "x-session-id",
        "waiting": "needs about 620 more requests of the canary until latency_p99 clears its margin",
        "waiting_since": T - 41,
        "waits_for_person": False,
        "intent": "",
        "led_by": "ada@serve-1 (process 4711)",
        "error": "",
        "verdict": Badge("evidence inconclusive", "warn"),
        "judged": "the analysis beside the steps",
        "synthetic_share": 0.12,
        "metrics": (
            metric("error_rate", "passed", "good", 0.03, 1, "at most 2.1 % more errors than stable, margin 3 %"),
            metric(
                "latency_p99", "inconclusive", "warn", 0.02, 2, "cannot yet say that the tail is as short as stable's"
            ),
            metric("parity", "passed", "good", 0.04, 3, "99.7 % of 1780 pairs agree"),
        ),
        "approvals": (ApprovalView("bob", "approve", "looks right", T - 10),),
        "approvals_wanted": 2,
        "approvals_given": 1,
        "bundle": "sha256:" + "4" * 64,
        "actor": "ada",
        "reason": "run x0mq3v8kd2",
        "started_at": T - 300,
        "ended_at": None,
    }
    return RolloutView(**{**values, **changes})


def endpoint(**changes: Any) -> EndpointView:
    live, canary = generation(3, "live", "good", 95, "stable"), generation(4, "staged", "busy", 5, "canary")
    failed = generation(2, "failed", "bad", None, "", error="replica ended: device memory is full", traffic=None)
    values: dict[str, Any] = {
        "name": "digits",
        "badge": Badge("ready", "good"),
        "url": "http://127.0.0.1:8080/v2/models/digits",
        "site": "local",
        "pool": "edge",
        "device": "cpu (rehearsal)",
        "rehearsal": True,
        "live": 3,
        "generations": (canary, live, failed, generation(1, "retired", "calm", None, "")),
        "older": 0,
        "split": (live, canary),
        "arms": (
            ArmView(3, "by weight", 15_980, 61, 0, 0, 0, 0, 0),
            ArmView(4, "by weight", 1_780, 7, 0, 7, 0, 0, 0),
            ArmView(4, "replayed samples", 240, 0, 0, 0, 0, 0, 0),
        ),
        "pairs": PairsView(1_780, 1_775, 1_778, 2, 14, 0),
        "rollout": rollout(),
        "past": (
            rollout(
                generation=2,
                stable=1,
                active=False,
                badge=Badge("aborted", "bad"),
                error="20 failures in a row",
                metrics=(),
            ),
        ),
        "targets": (1,),
        "site_error": "",
    }
    return EndpointView(**{**values, **changes})


def row(name: str = "digits", **changes: Any) -> EndpointRow:
    values: dict[str, Any] = {
        "name": name,
        "badge": Badge("ready", "good"),
        "live": 3,
        "bundle": "sha256:333333333333",
        "device": "cpu (rehearsal)",
        "rehearsal": True,
        "site": "local",
        "pool": "edge",
        "rollout": "3 → 4 at 5 %",
        "rollout_badge": Badge("progressing", "busy"),
    }
    return EndpointRow(**{**values, **changes})
