"""The text of `orchestrate rollout explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.core.units import format_duration


def print_explanation(found: Mapping[str, Any]) -> None:
    """Print what a strategy asks, step by step, and what is being waited for."""
    which = f"the rollout to generation {found['generation']}" if found["generation"] else "the last strategy"
    print(f"{found['endpoint']}: {which}\n  {found['strategy']}")
    steps: Sequence[Mapping[str, Any]] = found["steps"]
    for step in steps:
        _print_step(step)
    if not steps:
        print("  all requests are moved at once, as soon as the golden samples are answered")
    earliest = found.get("earliest_end_s")
    if earliest is not None:
        print(f"earliest end: after {format_duration(float(earliest))}, with enough requests")
    now: Mapping[str, Any] | None = found["now"]
    if now is None:
        return
    waits: Mapping[str, Any] = now["waiting"] or {}
    print(
        f"now: step {min(now['step'] + 1, now['steps'])} of {now['steps']} ({now['doing']}), {now['weight']} %, {now['state']}"
    )
    if waits.get("text"):
        print(f"waits for: {waits['text']}")
    verdict: Mapping[str, Any] = now["verdict"] or {}
    metrics: Sequence[Mapping[str, Any]] = verdict.get("metrics", ())
    for metric in metrics:
        needs = metric.get("needs")
        more = f"; about {needs} more requests" if metric["state"] == "inconclusive" and needs else ""
        print(f"  {metric['state']:<13} {metric['text']}{more}")


def _print_step(step: Mapping[str, Any]) -> None:
    print(f"  {step['number']}. {step['text']}")
    metrics: Sequence[Mapping[str, Any]] = step.get("metrics", ())
    for metric in metrics:
        print(f"       {metric['text']}")
