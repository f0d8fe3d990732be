"""Mirrors an execution into MLflow: level-triggered (call it again and again with what is true now) and idempotent.

Whatever happens (a lost reply, a kill, a second attempt), every run, model and version exists once: each carries a key that
is searched for before a create and adopted after a failed one. MLflow's absence never raises: what is left is `pending`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from orchestrator.core.errors import TrackingError, Unreachable
from orchestrator.tracking.aliases import mirror_aliases
from orchestrator.tracking.call import Call, Memory
from orchestrator.tracking.client import Gone, Session, session_for
from orchestrator.tracking.execution import mirror
from orchestrator.tracking.rollout_snapshot import AliasSnapshot, RolloutSnapshot
from orchestrator.tracking.rollouts import as_execution, mirror_rollout
from orchestrator.tracking.snapshot import ExecutionSnapshot, ProjectionMapping, ProjectionReport
from orchestrator.tracking.steps import step_key

BUDGET_S: Final = 10.0


def project(
    snapshot: ExecutionSnapshot,
    mapping: ProjectionMapping,
    *,
    uri: str,
    artifact_root: Path | None = None,
    budget_s: float = BUDGET_S,
    force: bool = False,
) -> ProjectionReport:
    """Bring MLflow to what `snapshot` says, as far as it answers within the budget.

    Args:
        snapshot: The execution as the ledger knows it now.
        mapping: Remembers MLflow's ids and what was sent.
        uri: `sqlite:////absolute/path/mlflow.db` or `http(s)://host:port`.
        artifact_root: Folder for artifacts where `uri` is a database; default: `mlartifacts` beside it.
        budget_s: Seconds that this call may take in all.
        force: Try even if MLflow did not answer a moment ago.

    Returns:
        What was reached. `pending` says what is left when MLflow is away or slow: call again later.
    """
    return reach(snapshot, mirror, mapping, uri=uri, artifact_root=artifact_root, budget_s=budget_s, force=force)


def project_rollout(
    move: RolloutSnapshot,
    mapping: ProjectionMapping,
    *,
    uri: str,
    artifact_root: Path | None = None,
    budget_s: float = BUDGET_S,
    force: bool = False,
) -> ProjectionReport:
    """Like `project`, for one move of an endpoint; its models must have been mirrored with their execution before."""
    frame = as_execution(move.recipe, move.actor, move.started_at_ms, move.execution)
    return reach(
        frame,
        lambda call: mirror_rollout(call, move),
        mapping,
        uri=uri,
        artifact_root=artifact_root,
        budget_s=budget_s,
        force=force,
    )


def project_aliases(
    shown: AliasSnapshot,
    mapping: ProjectionMapping,
    *,
    uri: str,
    artifact_root: Path | None = None,
    budget_s: float = BUDGET_S,
    force: bool = False,
) -> ProjectionReport:
    """Like `project`, for the aliases of an endpoint's models."""
    frame = as_execution(shown.endpoint, shown.actor, shown.at_ms)
    return reach(
        frame,
        lambda call: mirror_aliases(call, shown),
        mapping,
        uri=uri,
        artifact_root=artifact_root,
        budget_s=budget_s,
        force=force,
    )


def reach(
    frame: ExecutionSnapshot,
    work: Callable[[Call], None],
    mapping: ProjectionMapping,
    *,
    uri: str,
    artifact_root: Path | None,
    budget_s: float,
    force: bool,
) -> ProjectionReport:
    """Do `work` with MLflow within a budget, and report what was reached; see `project`."""
    started = time.monotonic()
    session = session_for(uri, artifacts_at(uri, artifact_root))
    if not session.lock.acquire(timeout=budget_s):
        return ProjectionReport(False, ("another thread of this process is talking to MLflow",))
    try:
        wait_s = session.breaker_s()
        if wait_s and not force:
            return ProjectionReport(False, (f"MLflow did not answer; next attempt in {wait_s:.0f} s",))
        session.begin(max(0.0, started + budget_s - time.monotonic()))
        return _attempt(session, Memory(mapping, uri), frame, work, started)
    finally:
        session.lock.release()


def metrics_sent(mapping: ProjectionMapping, uri: str, execution: str, step: str) -> int:
    """Return how many metric points of a step MLflow has; a snapshot may leave out that many (`metrics_offset`)."""
    return int(Memory(mapping, uri).record(step_key(execution, step)).sent.get("points", 0))


def _attempt(
    session: Session, memory: Memory, frame: ExecutionSnapshot, work: Callable[[Call], None], started: float
) -> ProjectionReport:
    call = Call(session, memory, frame)
    pending: tuple[str, ...] = ()
    try:
        try:
            work(call)
        except Gone:
            memory.new_epoch()  # wiped, restored or deleted by hand: look everything up again
            call = Call(session, memory, frame)
            work(call)
        session.succeeded()
    except Unreachable as error:
        session.failed()
        pending = (error.message,)
    except TrackingError as error:
        session.succeeded()
        call.refused.append(error.message)
    return _report(call, (*pending, *dict.fromkeys(call.later)), started)


def _report(call: Call, pending: tuple[str, ...], started: float) -> ProjectionReport:
    base = call.session.uri.rstrip("/") if call.session.is_server else ""
    urls = {name: base + page for name, page in call.urls.items()}
    return ProjectionReport(
        done=not pending,
        pending=pending,
        refused=tuple(call.refused),
        urls=urls,
        run_ids=dict(call.run_ids),
        model_ids=dict(call.model_ids),
        wall_s=time.monotonic() - started,
    )


def artifacts_at(uri: str, artifact_root: Path | None) -> Path | None:
    """Return where model files go; beside the database where nothing else is said, None for a server."""
    if artifact_root is not None or not uri.startswith("sqlite:///"):
        return artifact_root
    return Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
