"""The live table of a run on a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from orchestrator.cli.display import step_text
from orchestrator.core.redact import redact_text
from orchestrator.core.units import format_duration
from orchestrator.engine.events import Event
from orchestrator.plan.model import Plan

_STYLE: Final = {"succeeded": "green", "failed": "red", "running": "cyan", "cancelled": "yellow", "waiting": "yellow"}
_MARK: Final = {"succeeded": "✓", "failed": "✗", "cancelled": "-", "waiting": "…", "pending": "·"}


class LiveDisplay:
    """A table with one row per step that changes in place."""

    def __init__(self) -> None:
        self._console = Console()
        self._rows: dict[str, dict[str, Any]] = {}
        self._title = ""
        self._spinner = Spinner("dots")
        self._live = Live(console=self._console, refresh_per_second=8, get_renderable=self._render)  # renders at once

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.refresh()
        self._live.stop()

    def plan(self, execution: str, plan: Plan) -> None:
        """Lay out the rows."""
        self._title = f"{plan.recipe}  ·  execution {execution}"
        for step in plan.steps:
            self._rows[step.name] = {"state": "pending", "action": str(step.action), "reason": step.reason}

    def event(self, event: Event) -> None:
        """Change a row."""
        row = self._rows.setdefault(event.step, {}) if event.step else {}
        payload = event.payload
        if event.type == "step":
            row.update(payload, text="", done=None)
            if payload["state"] == "running":
                row["since"] = time.monotonic()
        elif event.type == "progress":
            row.update(done=payload["done"], total=payload["total"], text=payload["text"])
        elif event.type == "message":
            row["text"] = payload["text"]
        elif event.type == "retry":
            self.line(f"{event.step}: again in {payload['delay_s']:g} s ({payload['budget']})")

    def line(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(redact_text(text), highlight=False, markup=False)

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, row in self._rows.items():
            state = row.get("state", "pending")
            mark = self._spinner if state == "running" else Text(_MARK.get(state, "·"), style=_STYLE.get(state, "dim"))
            table.add_row(mark, Text(name, style="bold"), Text(str(row.get("action", ""))), self._detail(state, row))
        return Group(Text(self._title, style="bold"), table)

    def _detail(self, state: str, row: dict[str, Any]) -> Table | Text:
        if state == "pending":
            return Text(str(row.get("reason", "")), style="dim")
        if state != "running":
            return Text(step_text(row), style=_STYLE.get(state, ""))
        line = Table.grid(padding=(0, 1))
        elapsed = Text(format_duration(time.monotonic() - row.get("since", time.monotonic())), style="cyan")
        text = Text(redact_text(str(row.get("text", ""))), style="dim")
        if row.get("done") is not None and row.get("total"):
            line.add_row(elapsed, ProgressBar(total=row["total"], completed=row["done"], width=24), text)
        else:
            line.add_row(elapsed, text)
        return line
