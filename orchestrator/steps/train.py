"""Train: the recipe's `main(run)` (or its script) on every worker of the train site's Ray cluster.

Fault tolerance rests on our own checkpoints in the step's private folder, not on Ray's: they are committed by rename,
survive the cluster and the orchestrator, and are what `user.Run.epochs` resumes from. Ray Train starts, watches and
ends the group of workers; this step decides whether a failed group is started again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.core.errors import OrchestratorError, RetryClass, UserCodeError
from orchestrator.core.ids import new_token
from orchestrator.core.manifest import MANIFEST_NAME
from orchestrator.steps.api import CHECKPOINT, Output, StepContext, StepResult
from orchestrator.steps.train_checkpoint import Checkpoints
from orchestrator.steps.train_cluster import Placement, choose_placement, cluster_nodes, connected, wait_for_room
from orchestrator.steps.train_failure import explain_failure, read_failures
from orchestrator.steps.train_records import RecordTail
from orchestrator.steps.train_system import SystemSampler
from orchestrator.steps.train_worker import WorkerTask, command_of, run_worker

_INFRA_RETRIES: Final = 3
_PREEMPTION_RETRIES: Final = 10


def run(ctx: StepContext) -> StepResult:
    """Train to the end, from the last complete checkpoint if there is one.

    Raises:
        UserCodeError: The user's code failed, or left no checkpoint.
        DeviceError: The asked GPU is absent and the site does not allow the CPU.
        NoCapacity: The cluster cannot hold the workers.
        InfraError: Workers died more often than `retries.infra` allows.
    """
    began, checkpoints = time.monotonic(), Checkpoints(ctx.work / "checkpoints")
    resumed = checkpoints.newest()
    workers = int(ctx.spec["workers"])
    with connected(ctx.site):
        nodes = cluster_nodes()
        placement = choose_placement(ctx.spec["resources"], nodes, ctx.site)
        _announce(ctx, placement, workers, resumed.epoch + 1 if resumed else 0)
        wait_for_room(placement, workers, nodes, ctx.events)
        records = RecordTail(ctx.work / "metrics.ndjson", ctx.events)
        with records, SystemSampler(ctx.events, ctx.work / "began"):
            restarts = _fit_until_done(ctx, placement, workers)
    folder = _collect(ctx, checkpoints)
    facts: dict[str, Any] = {
        "device": placement.text,
        "workers": workers,
        "restarts": restarts,
        "epochs": records.epochs,
        "resumed_from_epoch": resumed.epoch if resumed else None,
        "train_s": round(time.monotonic() - began, 3),
        "torch": metadata.version("torch"),
        "ray": metadata.version("ray"),
    }
    return StepResult({"checkpoint": Output(folder, CHECKPOINT)}, records.last, facts)


def _announce(ctx: StepContext, placement: Placement, workers: int, done: int) -> None:
    if placement.device != placement.asked:
        ctx.events.message(f"NO GPU: training on the CPU, as site {ctx.site.name!r} allows")
    if done:
        ctx.events.message(f"resuming: {done} epoch(s) are committed")
    ctx.events.progress(done, max(done, 1), f"starting {workers} worker(s) on {placement.text}")


def _fit_until_done(ctx: StepContext, placement: Placement, workers: int) -> int:
    """Start the group of workers until it ends well or a budget is used up; returns how often it was started again.

    Ray's own `max_failures` counts a bug in the user's code like a dead machine, so the budgets are kept here.
    """
    given = cast("Mapping[str, int]", ctx.spec.get("retries") or {})
    left = {
        RetryClass.INFRA: int(given.get("infra", _INFRA_RETRIES)),
        RetryClass.PREEMPTION: int(given.get("preemption", _PREEMPTION_RETRIES)),
    }
    restarts = 0
    while True:
        error = _fit(ctx, placement, workers)
        if error is None:
            return restarts
        if left.get(error.retry, 0) <= 0:
            error.details["restarts"] = restarts
            raise error
        left[error.retry] -= 1
        restarts += 1
        ctx.events.message(f"{error.message}; starting the workers again (restart {restarts})")


def _fit(ctx: StepContext, placement: Placement, workers: int) -> OrchestratorError | None:
    """Start the group of workers once; returns why it failed, or None."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from orchestrator.steps.train_torchrun import PlainConfig

    name = f"fit-{new_token(4)}"
    failures, storage = ctx.work / "failures" / name, ctx.work / "ray"
    task = _task(ctx, placement, failures)
    trainer = DataParallelTrainer(
        run_worker,
        train_loop_config=task.to_config(),
        backend_config=PlainConfig(),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=placement.device == "cuda",
            resources_per_worker=dict(placement.per_worker),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return explain_failure(error, read_failures(failures))
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        shutil.rmtree(failures, ignore_errors=True)
    return None


def _task(ctx: StepContext, placement: Placement, failures: Path) -> WorkerTask:
    command = ctx.spec.get("command")
    return WorkerTask(
        entrypoint=str(ctx.spec.get("entrypoint") or ""),
        command=command_of(command) if command else (),
        params=dict(ctx.spec["params"]),
        recipe_dir=str(ctx.recipe_dir),
        checkpoints=str(ctx.work / "checkpoints"),
        metrics=str(ctx.work / "metrics.ndjson"),
        failures=str(failures),
        device=placement.device,
    )


def _collect(ctx: StepContext, checkpoints: Checkpoints) -> Path:
    folder = ctx.out / "checkpoint"
    newest = checkpoints.newest()
    if newest is not None:
        shutil.copytree(newest.folder, folder, ignore=shutil.ignore_patterns(MANIFEST_NAME))
        return folder
    if ctx.spec.get("command"):
        from orchestrator.steps.train_torchrun import collect_foreign

        return collect_foreign(checkpoints.root, folder)
    raise UserCodeError(
        f"{ctx.spec['entrypoint']} returned without committing a checkpoint",
        hint="loop over `run.epochs(total, model=..., optimizer=...)`, or call `run.save(epoch, model)`",
        place=str(ctx.spec["entrypoint"]),
    )
