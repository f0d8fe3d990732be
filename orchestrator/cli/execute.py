"""What `run` and `resume` share: show the run, then say where to look."""

from __future__ import annotations

import shlex

from orchestrator.app.moves import describe
from orchestrator.app.run import RunReport, RunRequest, Watch, run
from orchestrator.cli.display import Display, make_display
from orchestrator.cli.output import print_json
from orchestrator.core.errors import Interrupted, OrchestratorError, Waiting
from orchestrator.core.units import format_duration
from orchestrator.ledger import Holder


def execute(request: RunRequest, *, as_json: bool) -> None:
    """Run and print; errors go up to `main`."""
    display = make_display(as_json=as_json)

    def waiting(holder: Holder) -> None:
        owner = holder.owner
        display.line(f"waiting: this recipe is being run by {owner.user}@{owner.host}, pid {owner.pid}")

    try:
        with display:
            report = run(request, Watch(display.event, display.plan, waiting))
    except OrchestratorError as error:
        if not as_json:
            _where_to_look(display, request, error)
        raise
    if as_json:
        print_json({"event": "result", **report.to_json()})
    else:
        _epilogue(display, report)


def _where_to_look(display: Display, request: RunRequest, error: OrchestratorError) -> None:
    execution, step, log = (error.details.get(key) for key in ("execution", "step", "log"))
    if not execution:
        return
    environment = f" -e {shlex.quote(str(request.environment))}" if request.environment else ""
    end = "stopped" if isinstance(error, Interrupted) else "waits" if isinstance(error, Waiting) else "failed"
    display.line(f"\nexecution {execution} {end}")
    if log:
        display.line(f"  log       orchestrate logs {execution} --step {step}{environment}")
    display.line(f"  steps     orchestrate status {execution}{environment}")
    display.line(f"  go on     orchestrate resume {execution}{environment}")


def _epilogue(display: Display, report: RunReport) -> None:
    reused = sum(step["action"] == "REUSE" for step in report.steps)
    display.line(f"\n{report.state} in {format_duration(report.wall_s)}: {len(report.steps)} steps, {reused} reused")
    for move in report.moves:
        display.line(f"  {move['target']:<9} {describe(move)}")
    if report.endpoint:
        endpoint = report.endpoint
        display.line(f"  endpoint  {endpoint.get('url', '')}  generation {endpoint.get('generation')}")
        device = str(endpoint.get("device", ""))
        of_target = f" of target {endpoint['target']}" if endpoint.get("target") else ""
        stand_in = (
            f"the twin{of_target}, which rounds as the device does,"
            if endpoint.get("runtime") == "twin"
            else "fp32 ONNX"
        )
        rehearsed = f": {stand_in} in place of an NPU" if "rehearsal" in device else ""
        display.line(f"  device    {device}{rehearsed}")
        display.line(f"  bundle    {endpoint.get('bundle', '')}")
        display.line(f"  try       orchestrate endpoint infer {endpoint.get('endpoint', '')}")
    if report.tracking.get("state") == "pending":
        display.line("  MLflow    projection pending: " + "; ".join(report.tracking.get("pending", [])))
    elif report.tracking.get("state") in {"done", "following"}:
        behind = "" if report.tracking["state"] == "done" else "   (the projection is catching up)"
        display.line(f"  MLflow    orchestrate ui{behind}")
    display.line(f"  lineage   orchestrate lineage {report.execution}")
    if report.endpoint:
        display.line("  stop      orchestrate down   (the site stays up until then)")
