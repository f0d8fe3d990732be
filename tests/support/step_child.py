"""Runs one step in a process of its own: `python step_child.py context.json`; events and the result go to stdout as NDJSON."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any


class PrintedEvents:
    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever libraries print must not mix with our lines

    def write(self, event: str, **payload: Any) -> None:
        self._file.write(json.dumps({"event": event, **payload}) + "\n")

    def progress(self, done: float, total: float, text: str = "") -> None:
        self.write("progress", done=done, total=total, text=text)

    def metric(self, name: str, value: float, step: int = 0) -> None:
        self.write("metric", name=name, value=value, at=step)

    def message(self, text: str) -> None:
        self.write("message", text=text)


def main() -> int:
    from orchestrator.core.errors import OrchestratorError
    from orchestrator.steps.api import SiteInfo, StepContext

    data = json.loads(Path(sys.argv[1]).read_text())
    events = PrintedEvents()
    site = SiteInfo(**{**data["site"], "state": Path(data["site"]["state"])})
    paths = {name: Path(data[name]) for name in ("recipe_dir", "work", "out")}
    inputs = {name: Path(path) for name, path in data.get("inputs", {}).items()}
    sys.path.insert(0, data["recipe_dir"])
    context = StepContext(
        step=data["kind"],
        kind=data["kind"],
        spec=data["spec"],
        inputs=inputs,
        site=site,
        attempt=1,
        events=events,
        **paths,
    )
    try:
        result = importlib.import_module(f"orchestrator.steps.{data['kind']}").run(context)
    except OrchestratorError as error:
        events.write("failed", error=error.to_json())
        return error.exit_code
    outputs = {name: str(output.folder) for name, output in result.outputs.items()}
    events.write("finished", outputs=outputs, metrics=dict(result.metrics), facts=dict(result.facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
