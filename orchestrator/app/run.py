"""`run` and `resume`: take the recipe's lease, plan, execute, project."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from orchestrator.app.control_steps import PoolControl
from orchestrator.app.git import git_state
from orchestrator.app.history import find_execution, log_files
from orchestrator.app.moves import moves
from orchestrator.app.prepare import Prepared, prepare
from orchestrator.app.projection import BUDGET_S, Projection
from orchestrator.app.site_gate import BackgroundSite
from orchestrator.app.wiring import Workplace, open_workplace
from orchestrator.core.errors import OrchestratorError, UsageError
from orchestrator.core.ids import new_execution_id
from orchestrator.engine.events import Observer
from orchestrator.engine.recorder import Recorder
from orchestrator.engine.run import LEASE_TTL_S, Engine, Job
from orchestrator.engine.stop import StopRequests
from orchestrator.engine.transitions import ExecutionState
from orchestrator.ledger import ExecutionRow, Holder, Lease, Ledger, Owner
from orchestrator.ledger.rows import user_name
from orchestrator.plan.model import Plan

_LEAST_PATIENCE_S: Final = 1.0
_CONTINUED: Final = {ExecutionState.RUNNING, ExecutionState.INTERRUPTED, ExecutionState.WAITING}


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What the user asked for.

    Attributes:
        execution: Go on with exactly this execution (`resume`); empty = `run`.
    """

    recipe: Path
    environment: Path | None = None
    set_: Sequence[str] = ()
    refresh: Sequence[str] = ()
    no_wait: bool = False
    execution: str = ""
    retry_delay_s: float = 1.0


@dataclass(frozen=True, slots=True)
class RunReport:
    """How it ended."""

    execution: str
    state: str
    wall_s: float
    steps: list[dict[str, Any]]
    endpoint: dict[str, Any] | None = None
    tracking: dict[str, Any] = field(default_factory=dict[str, Any])
    moves: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def to_json(self) -> dict[str, Any]:
        """Return what `run --json` prints last."""
        return {
            "execution": self.execution,
            "state": self.state,
            "wall_s": round(self.wall_s, 3),
            "steps": self.steps,
            "endpoint": self.endpoint,
            "moves": self.moves,
            "tracking": self.tracking,
        }


@dataclass(frozen=True, slots=True)
class Watch:
    """Whom to tell: each event, the plan, and who is in the way."""

    event: Observer
    plan: Callable[[str, Plan], None]
    waiting: Callable[[Holder], None]


def run(request: RunRequest, watch: Watch) -> RunReport:
    """Run a recipe to its end.

    Raises:
        Conflict: Another run holds the recipe and `no_wait` was asked.
        DeviceError: A pool of the rollout's site needs NPUs that are not here; nothing has run.
        OrchestratorError: The first failure; everything done before is kept.
    """
    began = time.monotonic()
    workplace = open_workplace(request.environment)
    prepared = prepare(workplace, request.recipe, request.set_)
    _check_devices(prepared)
    with workplace.open_ledger() as ledger:
        wait_s = 0.0 if request.no_wait else math.inf
        owner = Owner.here("run " + prepared.name)
        with ledger.leases.held(
            f"recipe/{prepared.name}", owner, ttl_s=LEASE_TTL_S, wait_s=wait_s, on_wait=watch.waiting
        ) as lease:
            execution = _execution(request, prepared, ledger, lease)
            recorder = Recorder(ledger, lease, execution, watch.event)
            recorder.end(ExecutionState.RUNNING)
            plan = prepared.plan(ledger, request.refresh)
            watch.plan(execution, plan)
            projection = Projection.start(workplace, execution)
            try:
                _execute(request, prepared, plan, recorder)
            except OrchestratorError as error:
                error.details |= _whereabouts(workplace, ledger, execution)
                raise
            finally:
                tracking = projection.finish(_patience_s(time.monotonic() - began))
        return _report(ledger, execution, time.monotonic() - began, tracking)


def _check_devices(prepared: Prepared) -> None:
    """Look before hours of training whether the pools of the rollout's site can be held here: it comes up whole.

    Raises:
        DeviceError: A pool of its site asks for NPUs that this machine lacks; nothing falls back to a CPU.
    """
    deploy = next((draft for draft in prepared.drafts if draft.kind == "deploy"), None)
    if deploy is None:
        return
    pools = prepared.workplace.site(deploy.site).pools
    if not all(pool.rehearsal for pool in pools.values()):
        from orchestrator.cluster.devices import check_devices, npu_devices

        check_devices(pools, npu_devices())


def _patience_s(worked_s: float) -> float:
    """Return how long to wait for MLflow: never longer than the work itself took; the projector goes on without us."""
    return min(BUDGET_S, max(_LEAST_PATIENCE_S, worked_s))


def _execute(request: RunRequest, prepared: Prepared, plan: Plan, recorder: Recorder) -> None:
    workplace, execution = prepared.workplace, recorder.execution
    folder = workplace.execution_folder(execution)
    folder.mkdir(parents=True, exist_ok=True)
    site_name = next(iter(workplace.environment.sites))
    job = Job(
        execution=execution,
        plan=plan,
        folder=folder,
        store=workplace.store,
        work=workplace.work,
        recipe_dir=prepared.loaded.folder,
        site_name=site_name,
        site_state=workplace.state,
        allow_cpu=workplace.environment.sites[site_name].allow_cpu,
        retry_delay_s=request.retry_delay_s,
    )
    site = BackgroundSite(workplace, site_name, folder / "site.json")
    stop = StopRequests(recorder.ledger, execution)
    stop.skip_past()
    Engine(job, recorder, stop, site, PoolControl(workplace, recorder.ledger, execution)).run()


def _whereabouts(workplace: Workplace, ledger: Ledger, execution: str) -> dict[str, str]:
    """Return the execution that failed, the step and its log, as far as there are any."""
    failed = [step for step in ledger.executions.steps(execution) if step.state == "failed"]
    logs = log_files(workplace, execution, failed[0].name) if failed else []
    return {
        "execution": execution,
        **({"step": failed[0].name} if failed else {}),
        **({"log": str(logs[-1])} if logs else {}),
    }


def _execution(request: RunRequest, prepared: Prepared, ledger: Ledger, lease: Lease) -> str:
    """Return the execution to work on: the named one, one that was cut off, or a new one."""
    if request.execution:
        return request.execution
    latest = ledger.executions.latest(prepared.name)
    if latest is not None and latest.state in _CONTINUED:
        same = (latest.recipe_sha256, latest.environment_sha256) == (
            prepared.recipe_sha256,
            prepared.environment_sha256,
        )
        if same:
            return latest.id
        if latest.state == ExecutionState.RUNNING:  # its process died, since we hold the lease
            ledger.executions.set_state(latest.id, ExecutionState.INTERRUPTED, lease, ended_at=time.time())
    execution = new_execution_id()
    ledger.executions.create(_row(request, prepared, execution), lease)
    return execution


def _row(request: RunRequest, prepared: Prepared, execution: str) -> ExecutionRow:
    return ExecutionRow(
        id=execution,
        recipe=prepared.name,
        recipe_sha256=prepared.recipe_sha256,
        recipe_text=prepared.loaded.text,
        recipe_path=str(request.recipe.absolute()),  # a link stays one: the code lies beside it
        environment=prepared.workplace.name,
        environment_sha256=prepared.environment_sha256,
        plan={"set": list(request.set_), "steps": [draft.name for draft in prepared.drafts]},
        user=user_name(),
        host=socket.gethostname(),
        git=git_state(prepared.loaded.folder),
        state=ExecutionState.RUNNING,
        created_at=time.time(),
    )


def _report(ledger: Ledger, execution: str, wall_s: float, tracking: dict[str, Any]) -> RunReport:
    row = ledger.executions.get(execution)
    steps = ledger.executions.steps(execution)
    deployed = next((s for s in steps if s.kind == "deploy" and s.state == "succeeded"), None)
    return RunReport(
        execution=execution,
        state=row.state,
        wall_s=wall_s,
        steps=[
            {
                "step": s.name,
                "action": s.action,
                "state": s.state,
                "reason": s.reason,
                "metrics": dict(s.metrics),
                "wall_s": round((s.ended_at or 0) - (s.started_at or 0), 3),
            }
            for s in steps
        ],
        endpoint=dict(deployed.facts) if deployed else None,
        tracking=tracking,
        moves=moves(steps),
    )


def resume_request(execution: str, environment: Path | None, *, no_wait: bool = False) -> RunRequest:
    """Turn an execution's id into the request that goes on with it.

    Raises:
        UsageError: There is none of that id, it has succeeded, or its recipe file is gone.
    """
    with open_workplace(environment).look_into_ledger() as ledger:
        row = find_execution(ledger, execution)
    if row.state == ExecutionState.SUCCEEDED:
        raise UsageError(f"execution {execution} has succeeded; there is nothing to resume", hint="use `run`")
    path = Path(row.recipe_path)
    if not path.is_file():
        raise UsageError(f"the recipe of {execution} is gone: {path}", hint="put it back, or `run` another")
    plan: dict[str, Any] = dict(row.plan)
    return RunRequest(path, environment, tuple(plan.get("set", ())), no_wait=no_wait, execution=execution)
