"""Mirrors executions into MLflow from a process of its own: MLflow's weight and moods never touch the command.

python -m orchestrator.app.projection STATE_FILE      (started by `run`; ends when the execution is mirrored)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.app.rollout_projection import catch_up_rollouts
from orchestrator.app.wiring import Workplace, open_workplace
from orchestrator.core.errors import Conflict
from orchestrator.core.files import write_json
from orchestrator.core.processes import ProcessIdentity
from orchestrator.core.redact import redact_url
from orchestrator.ledger import Ledger, Owner
from orchestrator.tracking.snapshot import ProjectionReport

BUDGET_S: Final = 10.0
_PERIOD_S: Final = 1.0
_LEASE_TTL_S: Final = 60.0
_POLL_S: Final = 0.05
_RECENT: Final = 50
_FINAL: Final = {"succeeded", "failed", "cancelled", "interrupted", "waiting"}


@dataclass(slots=True)
class Projection:
    """A running projector, as its starter sees it."""

    process: subprocess.Popen[bytes] | None
    result: Path

    @classmethod
    def start(cls, workplace: Workplace, execution: str) -> Projection:
        """Start mirroring an execution while it runs."""
        folder = workplace.execution_folder(execution)
        folder.mkdir(parents=True, exist_ok=True)
        result = folder / "tracking.json"
        result.unlink(missing_ok=True)
        if not workplace.tracking_uri:
            return cls(None, result)
        arguments = [execution, str(result), str(os.getpid()), str(workplace.path or "")]
        with (folder / "tracking.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.app.projection", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "ORCHESTRATE_FAULT": ""},
            )
        return cls(process, result)

    def finish(self, wait_s: float = BUDGET_S) -> dict[str, Any]:
        """Wait, at most `wait_s`, until MLflow shows the end.

        The projector goes on without us; what it cannot bring to MLflow either, a later command does.
        """
        if self.process is None:
            return {"state": "off", "urls": {}, "pending": []}
        deadline = time.monotonic() + wait_s
        while not self.result.exists() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        try:
            return json.loads(self.result.read_bytes())
        except (OSError, ValueError):
            return {"state": "following", "urls": {}, "pending": []}


def catch_up(workplace: Workplace, ledger: Ledger, *, but: str = "") -> None:
    """Mirror recent executions whose end MLflow has not seen yet, oldest first."""
    for row in reversed(ledger.executions.list(limit=_RECENT)):
        if row.id != but and row.state in _FINAL and ledger.projections.get(execution_mark(row.id)) != row.state:
            try:
                report = _project(workplace, ledger, row.id, wait_s=0.0)
            except Conflict:
                continue  # its own projector is at work
            if report["state"] == "pending":
                return  # it does not answer; the next command tries again


def execution_mark(execution: str) -> str:
    """Return the key under which it stands which end of an execution MLflow shows."""
    return f"orchestrate:projected:{execution}"


def project_now(workplace: Workplace, ledger: Ledger, execution: str, *, wait_s: float = BUDGET_S) -> ProjectionReport:
    """Mirror one execution as the ledger knows it now; waits at most the budget.

    Raises:
        Conflict: Another process has been mirroring this execution for longer than `wait_s`; two at once would make
            things twice in MLflow, which has no compare-and-set.
    """
    from orchestrator.app.snapshots import snapshot
    from orchestrator.tracking.projector import project

    owner = Owner.here("projection")
    with ledger.leases.held(f"projection/{execution}", owner, ttl_s=_LEASE_TTL_S, wait_s=wait_s):
        state = ledger.executions.get(execution).state
        report = project(
            snapshot(workplace, ledger, execution),
            ledger.projections,
            uri=workplace.tracking_uri,
            artifact_root=workplace.artifact_root,
            budget_s=BUDGET_S,
            force=state in _FINAL,
        )
        if report.done and state in _FINAL:
            ledger.projections.put(execution_mark(execution), state)
        return report


def _project(workplace: Workplace, ledger: Ledger, execution: str, *, wait_s: float = BUDGET_S) -> dict[str, Any]:
    report = project_now(workplace, ledger, execution, wait_s=wait_s)
    return {
        "state": "done" if report.done else "pending",
        "pending": list(report.pending),
        "refused": list(report.refused),
        "urls": dict(report.urls),
        "uri": redact_url(workplace.tracking_uri),
    }


def _mirror(workplace: Workplace, execution: str, result: Path, parent: ProcessIdentity | None) -> None:
    with workplace.open_ledger() as ledger:
        while True:
            orphan = parent is None or not parent.alive()
            final = ledger.executions.get(execution).state in _FINAL
            report = _project(workplace, ledger, execution)
            if final or orphan:
                write_json(result, report)
                break
            if report["state"] == "done":
                catch_up_rollouts(workplace, ledger)
            _wait(ledger, execution, parent)
        if report["state"] == "done":
            catch_up(workplace, ledger, but=execution)
            catch_up_rollouts(workplace, ledger)


def _wait(ledger: Ledger, execution: str, parent: ProcessIdentity | None) -> None:
    """Let a second pass, or less when the execution ends: somebody waits for us then."""
    until = time.monotonic() + _PERIOD_S
    while time.monotonic() < until:
        time.sleep(_POLL_S)
        if parent is None or not parent.alive() or ledger.executions.get(execution).state in _FINAL:
            return


def main(arguments: list[str]) -> None:
    """Mirror one execution until it has ended."""
    execution, result, parent, environment = arguments
    workplace = open_workplace(Path(environment) if environment else None)
    _mirror(workplace, execution, Path(result), ProcessIdentity.of(int(parent)))


if __name__ == "__main__":
    main(sys.argv[1:])
