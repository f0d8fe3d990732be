"""How a run looks: a live table on a terminal, plain lines in CI, NDJSON for machines."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol

from orchestrator.cli.output import print_json, say
from orchestrator.core.redact import redact_text
from orchestrator.core.units import format_duration
from orchestrator.engine.events import Event
from orchestrator.plan.model import Action, Plan


class Display(Protocol):
    """Shows a run while it goes on."""

    def plan(self, execution: str, plan: Plan) -> None:
        """The plan is made."""
        ...

    def event(self, event: Event) -> None:
        """Something happened."""
        ...

    def line(self, text: str) -> None:
        """Say one line."""
        ...

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_display(*, as_json: bool) -> Display:
    """Choose by what is listening."""
    if as_json:
        return JsonDisplay()
    if sys.stdout.isatty():
        from orchestrator.cli.live import LiveDisplay

        return LiveDisplay()
    return PlainDisplay()


def plan_lines(plan: Plan) -> list[str]:
    """Return the plan as aligned text."""
    width = max((len(step.name) for step in plan.steps), default=4)
    lines = [redact_text(f"  {step.name:<{width}}  {step.action:<6}  {step.reason}") for step in plan.steps]
    deploy = next((step for step in plan.steps if step.draft.kind == "deploy" and not step.is_done), None)
    if deploy is not None and deploy.draft.spec.get("strategy", {}).get("steps"):
        from orchestrator.rollout.strategy import Strategy
        from orchestrator.rollout.strategy_text import strategy_text

        lines.append(f"  rollout: {strategy_text(Strategy.from_json(deploy.draft.spec['strategy']))}")
    if any(step.action is Action.RUN_LATER for step in plan.steps):
        lines.append("  (RUN*: runs, unless its inputs turn out to be what an earlier result was made from)")
    return lines


def step_text(payload: dict[str, Any]) -> str:
    """Return the words behind a finished step: time, metrics, error."""
    words: list[str] = []
    if payload.get("ended_at") and payload.get("started_at"):
        words.append(format_duration(payload["ended_at"] - payload["started_at"]))
    metrics: dict[str, float] = dict(payload.get("metrics") or {})
    words += [f"{name} {value:.5g}" for name, value in list(metrics.items())[:4]]
    if payload.get("error"):
        words.append(str(payload["error"]["message"]))
    return redact_text("  ".join(words))


class PlainDisplay:
    """One line per change; made for logs."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._said: dict[str, float] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def plan(self, execution: str, plan: Plan) -> None:
        """Print the plan."""
        say(f"execution {execution} of {plan.recipe}")
        say("\n".join(plan_lines(plan)))

    def event(self, event: Event) -> None:
        """Print what is worth a line; progress at most every two seconds a step."""
        payload = event.payload
        if event.type == "step" and payload["state"] != "pending":
            action = (
                f" ({payload['action']})" if payload["state"] == "succeeded" and payload["action"] == "REUSE" else ""
            )
            self._print(f"{event.step}: {payload['state']}{action}  {step_text(payload)}")
        elif event.type == "progress":
            now = time.monotonic()
            if now - self._said.get(event.step, 0.0) >= 2.0:
                self._said[event.step] = now
                self._print(f"{event.step}: {payload['done']:g}/{payload['total']:g} {payload['text']}")
        elif event.type == "message":
            self._print(f"{event.step}: {payload['text']}")
        elif event.type == "retry":
            self._print(f"{event.step}: again in {payload['delay_s']:g} s ({payload['budget']})")

    def line(self, text: str) -> None:
        """Print a line."""
        say(redact_text(text))

    def _print(self, text: str) -> None:
        say(f"[{time.monotonic() - self._began:6.1f}s] {redact_text(text).rstrip()}")


class JsonDisplay:
    """NDJSON: the plan, every event, and (printed by the verb) the result last."""

    def __enter__(self) -> JsonDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def plan(self, execution: str, plan: Plan) -> None:
        """Print the plan as an event."""
        print_json({"event": "plan", "execution": execution, **plan.to_json()})

    def event(self, event: Event) -> None:
        """Print an event."""
        print_json(event.to_json())

    def line(self, text: str) -> None:
        """Print a message as an event."""
        print_json({"event": "message", "step": "", "text": text})
