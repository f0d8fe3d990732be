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
    earliest = found["earliest_end_s"]
    if earliest is not None:
        print(f"earliest end: after {format_duration(float(earliest))}, without waiting for people")
    else:
        print("earliest end: depends on the requests; --rps N reckons it")
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
    number = f"{step['number']}." if step["number"] else "*"
    print(f"  {number:<3} {step['text']}")
    needs: Sequence[Mapping[str, Any]] = step["needs"]
    for need in needs:
        twice = _count(need["detect_median"]), _count(need["detect_p90"])
        print(
            f"        {need['name']}: clears its margin of {need['margin']:.3g} after {_count(need['clear'])} requests of the canary "
            f"without an event; shows twice {need['base_rate']:.3g} after {twice[0]} (9 of 10 times {twice[1]})"
        )


def _count(value: int | None) -> str:
    return "out of reach" if value is None else f"{value:,}"
