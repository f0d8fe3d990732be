"""Report artifacts: one `report.json` that says what was checked and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.core.files import write_json
from orchestrator.steps.api import REPORT, Output, StepContext


def report(ctx: StepContext, body: Mapping[str, Any]) -> Output:
    """Write the step's report."""
    folder = ctx.out / "report"
    folder.mkdir(exist_ok=True)
    write_json(folder / "report.json", {"step": ctx.step, "kind": ctx.kind, **body})
    return Output(folder, REPORT)
