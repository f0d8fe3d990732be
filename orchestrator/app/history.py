"""`status`, `cancel`, `logs`: looking at executions, and stopping one from another terminal."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from orchestrator.app.control_steps import reason_of
from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import LedgerError, UsageError
from orchestrator.engine.stop import CANCEL_REQUESTED
from orchestrator.engine.transitions import ExecutionState
from orchestrator.ledger import EventRow, ExecutionRow, Ledger, Owner

_FINAL: Final = {ExecutionState.SUCCEEDED, ExecutionState.FAILED, ExecutionState.CANCELLED}
_CANCEL_WAIT_S: Final = 30.0
_CHUNK_BYTES: Final = 1 << 20
_utf8: Final = codecs.getincrementaldecoder("utf-8")


def executions(ledger: Ledger, recipe: str | None, limit: int) -> list[dict[str, Any]]:
    """Return the newest executions, newest first."""
    return [_brief(ledger, row) for row in ledger.executions.list(recipe, limit=limit)]


def execution(workplace: Workplace, ledger: Ledger, execution_id: str) -> dict[str, Any]:
    """Return one execution with its steps and attempts."""
    row = find_execution(ledger, execution_id)
    steps = [
        {
            "step": s.name,
            "kind": s.kind,
            "action": s.action,
            "state": s.state,
            "reason": s.reason,
            "attempt": s.attempt,
            "fingerprint": s.fingerprint,
            "outputs": dict(s.outputs),
            "metrics": dict(s.metrics),
            "facts": dict(s.facts),
            "error": s.error,
            "wall_s": None if s.ended_at is None or s.started_at is None else round(s.ended_at - s.started_at, 3),
        }
        for s in ledger.executions.steps(execution_id)
    ]
    attempts = [
        {"step": a.step, "attempt": a.number, "state": a.state, "retry_class": a.retry_class, "error": a.error}
        for a in ledger.executions.attempts(execution_id)
    ]
    folder = workplace.execution_folder(execution_id)
    return {**_brief(ledger, row), "error": row.error, "steps": steps, "attempts": attempts, "folder": str(folder)}


def find_execution(ledger: Ledger, asked: str | None) -> ExecutionRow:
    """Return an execution by id; the latest when none is named.

    Raises:
        UsageError: There is none, or none of that id.
    """
    if asked is not None:
        try:
            return ledger.executions.get(asked)
        except LedgerError as error:
            raise UsageError(error.message, hint=error.hint) from error
    latest = ledger.executions.latest()
    if latest is None:
        raise UsageError("nothing has been run here yet", hint="orchestrate run RECIPE")
    return latest


def cancel(ledger: Ledger, execution_id: str, actor: str) -> str:
    """Cancel an execution and return its state: ask its process, or settle it ourselves when that is gone.

    Raises:
        UsageError: It has ended already.
    """
    row = ledger.executions.get(execution_id)
    if row.state in _FINAL:
        raise UsageError(f"execution {execution_id} is {row.state} already", hint="nothing to cancel")
    event = EventRow(execution=execution_id, type=CANCEL_REQUESTED, t=time.time(), payload={"actor": actor})
    ledger.executions.append_events([event])
    deadline = time.monotonic() + _CANCEL_WAIT_S
    while time.monotonic() < deadline:
        row = ledger.executions.get(execution_id)
        if row.state in _FINAL:
            break
        if row.state != ExecutionState.RUNNING or not _somebody_runs(ledger, row.recipe):
            name = f"recipe/{row.recipe}"
            with ledger.leases.held(name, Owner.here("cancel"), ttl_s=30.0, wait_s=5.0, on_wait=None) as lease:
                ledger.executions.set_state(execution_id, ExecutionState.CANCELLED, lease, ended_at=time.time())
            break
        time.sleep(0.1)
    return ledger.executions.get(execution_id).state


def left_under_way(ledger: Ledger, execution_id: str) -> list[dict[str, Any]]:
    """Return the rollouts that an execution has begun and that have not ended: nobody may lead them any more, and the canary
    keeps its traffic until somebody goes on with it or takes it back.
    """
    return [
        {
            "endpoint": row.endpoint,
            "generation": row.generation,
            "state": row.state.value,
            "weight": row.weight,
            "watch": "orchestrate rollout watch --once",
            "abort": f"orchestrate rollout abort --endpoint {row.endpoint}",
        }
        for row in ledger.rollouts.all_active()
        if row.reason == reason_of(execution_id)
    ]


def going(ledger: Ledger, execution_id: str) -> bool:
    """Tell whether an execution runs: its state says so, and so does a live process that holds the recipe."""
    row = ledger.executions.get(execution_id)
    return row.state == ExecutionState.RUNNING and _somebody_runs(ledger, row.recipe)


def log_files(workplace: Workplace, execution_id: str, step: str | None) -> list[Path]:
    """Return the logs of an execution in the order they began, of one step when named."""
    folder = workplace.execution_folder(execution_id) / "logs"
    found = [path for path in folder.glob("*.log") if step in {None, path.stem.rpartition(".")[0]}]
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def follow(files: Callable[[], list[Path]], going: Callable[[], bool]) -> Iterator[tuple[str, str]]:
    """Yield `(step.attempt, text)` as logs grow, until `going` says no and all is read; at most 1 MiB at a time."""
    offsets: dict[Path, int] = {}
    decoders: dict[Path, codecs.IncrementalDecoder] = {}
    while True:
        more = going()
        for path in files():
            decode = decoders.setdefault(path, _utf8(errors="replace")).decode
            with path.open("rb") as file:
                file.seek(offsets.get(path, 0))
                while data := file.read(_CHUNK_BYTES):
                    offsets[path] = file.tell()
                    yield path.stem, decode(data)
        if not more:
            return
        time.sleep(0.2)


def _brief(ledger: Ledger, row: ExecutionRow) -> dict[str, Any]:
    state = row.state
    if state == ExecutionState.RUNNING and not _somebody_runs(ledger, row.recipe):
        state = "interrupted (its process is gone; the same `run` goes on)"
    return {
        "execution": row.id,
        "recipe": row.recipe,
        "state": state,
        "created_at": row.created_at,
        "ended_at": row.ended_at,
        "wall_s": round((row.ended_at or time.time()) - row.created_at, 1),
        "user": row.user,
    }


def _somebody_runs(ledger: Ledger, recipe: str) -> bool:
    holder = ledger.leases.holder(f"recipe/{recipe}")
    return holder is not None and not holder.owner.surely_dead() and holder.expires_at > time.time()
