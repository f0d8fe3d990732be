"""A strategy in words, as `plan` and `rollout explain` show it."""

from __future__ import annotations

from typing import Final

from orchestrator.rollout.strategy import Analysis, Pause, SetHeaderRoute, SetMirror, SetWeight, Step, Strategy

_SIGNS: Final = {"exact": "=", "prefix": "^=", "regex": "~"}


def step_text(step: Step) -> str:
    """Return a step in a few words: `10 %`, `mirror 100 %`, `pause 10s and 300 requests`."""
    match step:
        case SetWeight():
            return f"{step.weight} %"
        case SetMirror():
            return f"mirror {step.percent} %" if step.percent else "mirror off"
        case SetHeaderRoute():
            shown = " or ".join(f"{m.header} {_SIGNS[m.how]} {m.value}" for m in step.matches)
            return f"route {shown}" if shown else "no header route"
        case Pause():
            duration = f"{step.duration_s:g}s" if step.duration_s is not None else ""
            requests = f"{step.min_requests} requests" if step.min_requests is not None else ""
            return f"pause {' and '.join(part for part in (duration, requests) if part) or 'for a person'}"
        case Analysis():
            return f"analysis ({', '.join(metric.name for metric in step.spec.metrics)})"


def strategy_text(strategy: Strategy) -> str:
    """Return a strategy in one line, as `plan` shows it."""
    steps = " → ".join([*(step_text(step) for step in strategy.steps), "live"])
    beside = strategy.analysis
    watched = f"; beside it {', '.join(metric.name for metric in beside.metrics)}" if beside is not None else ""
    people = f"; {strategy.approvals} approval{'s' if strategy.approvals != 1 else ''}" if strategy.approvals else ""
    return f"{strategy.kind}: {steps}{watched}{people}"
