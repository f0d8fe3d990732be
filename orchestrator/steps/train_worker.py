"""What runs inside each Ray Train worker: the recipe's `main(run)`, or one process of a torchrun-style script."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

from orchestrator.core.errors import DeviceError, InfraError, OrchestratorError, UserCodeError
from orchestrator.core.files import write_json
from orchestrator.core.processes import die_with_parent
from orchestrator.steps.user_code import load_entrypoint, user_code

_TAIL_LINES: Final = 40
_PEER_GONE: Final = re.compile(
    r"(?i)gloo|nccl|connection (closed|reset)|broken pipe|process ?group|TCPStore|socket timeout"
)
_KILLED: Final = (-9, -15)


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """What every worker is told; JSON-ready. Paths are the same on all of them (one file system)."""

    entrypoint: str
    command: tuple[str, ...]
    params: Mapping[str, Any]
    recipe_dir: str
    checkpoints: str
    metrics: str
    failures: str
    device: str

    def to_config(self) -> dict[str, Any]:
        """Return the form that goes to Ray Train as `train_loop_config`."""
        return asdict(self)


def run_worker(config: Mapping[str, Any]) -> None:
    """Run one worker; a failure is written down for the driver before it is raised.

    Raises:
        UserCodeError: The user's code failed.
        OrchestratorError: Something else did.
    """
    from ray.train import get_context

    task = WorkerTask(**config)
    context: Any = get_context()
    rank = int(context.get_world_rank())
    os.chdir(task.recipe_dir)
    try:
        if task.command:
            _run_command(task, context)
        else:
            _run_entrypoint(task, context)
    except OrchestratorError as error:
        _report_failure(task, rank, error)
        raise
    except Exception as error:
        found = InfraError(f"worker {rank}: {type(error).__name__}: {error}")
        _report_failure(task, rank, found)
        raise found from error


def command_of(command: str | list[str]) -> tuple[str, ...]:
    """Return a recipe's `command` as an argument list; `python` means the interpreter that runs us.

    Raises:
        UserCodeError: It starts a launcher of its own.
    """
    words = shlex.split(command) if isinstance(command, str) else list(command)
    if words and Path(words[0]).name in {"torchrun", "mpirun", "deepspeed"}:
        raise UserCodeError(
            f"train.command starts {words[0]}, but the workers are started for you",
            hint="write the script alone, e.g. `python train.py`; it is run once per worker with torchrun's variables",
        )
    if words and words[0] in {"python", "python3"}:
        words[0] = sys.executable
    return tuple(words)


def _run_entrypoint(task: WorkerTask, context: Any) -> None:
    import torch

    from orchestrator.user import Run

    os.environ.update(_torchrun_variables(context))
    device, world_size = _device(task), int(context.get_world_size())
    if world_size > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    run = Run(
        task.params,
        rank=int(context.get_world_rank()),
        world_size=world_size,
        local_rank=int(context.get_local_rank()),
        device=device,
        checkpoint_dir=Path(task.checkpoints),
        metrics_file=Path(task.metrics),
    )
    recipe_dir = Path(task.recipe_dir)
    try:
        main = load_entrypoint(task.entrypoint, recipe_dir)
        with user_code(task.entrypoint, recipe_dir):
            main(run)
    finally:
        run.close()
    if world_size > 1:
        torch.distributed.destroy_process_group()


def _device(task: WorkerTask) -> Any:
    import torch

    if task.device != "cuda":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            "Ray gave this worker a GPU, but torch sees no CUDA device",
            hint="the cluster declares GPUs that are not there, or torch is built without CUDA (pip's +cpu wheel)",
            place=socket.gethostname(),
        )
    from ray.train.torch import get_device

    device = get_device()
    torch.cuda.set_device(device)
    return device


def _run_command(task: WorkerTask, context: Any) -> None:
    from orchestrator.steps.train_checkpoint import lock_exclusively

    rank = int(context.get_world_rank())
    # Not the lock of `user.Run`: the script may be one that uses it.
    lock = lock_exclusively(Path(task.checkpoints).with_name("command.lock")) if rank == 0 else None
    env = {
        **os.environ,
        **_torchrun_variables(context),
        "ORCHESTRATE_CHECKPOINT_DIR": task.checkpoints,
        "ORCHESTRATE_METRICS_FILE": task.metrics,
        "ORCHESTRATE_PARAMS": json.dumps(dict(task.params)),
    }
    if task.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    try:
        code, tail = _run_process(task.command, env)
    finally:
        if lock is not None:
            lock.close()
    if code in _KILLED:
        raise InfraError(f"{task.command[0]} of worker {rank} was ended by signal {-code}", details={"stderr": tail})
    if code:
        last = next((line for line in reversed(tail.splitlines()) if line.strip()), "no output on stderr")
        raise UserCodeError(
            f"`{shlex.join(task.command)}` ended with exit code {code}: {last.strip()}",
            place=f"worker {rank}",
            hint="correct the script and run again; the step's log has all of its output",
            details={"traceback": tail, "exit_code": code},
        )


def _torchrun_variables(context: Any) -> dict[str, str]:
    """Agree on a meeting place, and return the variables that `torchrun` would set."""
    from ray.train.collective import broadcast_from_rank_zero

    rank = int(context.get_world_rank())
    master: dict[str, str] = broadcast_from_rank_zero(_master() if rank == 0 else {})
    return {
        **master,
        "RANK": str(rank),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
    }


def _run_process(command: tuple[str, ...], env: Mapping[str, str]) -> tuple[int, str]:
    """Run the script; its stderr is passed through and its last lines are kept."""
    try:
        process = subprocess.Popen(
            command,
            env=dict(env),
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            preexec_fn=die_with_parent,  # noqa: PLW1509  one prctl call; a stale script must not outlive its worker
        )
    except OSError as error:
        raise UserCodeError(f"cannot start {command[0]!r}: {error}", hint="correct train.command") from error
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    assert process.stderr is not None
    with process.stderr as stream:
        _tee(stream, tail)
    return process.wait(), "".join(tail)


def _tee(stream: IO[str], tail: deque[str]) -> None:
    for line in stream:
        sys.stderr.write(line)
        tail.append(line)


def _master() -> dict[str, str]:
    ray: Any = importlib.import_module("ray")

    address = str(ray.util.get_node_ip_address())
    with socket.socket() as probe:
        probe.bind((address, 0))
        return {"MASTER_ADDR": address, "MASTER_PORT": str(probe.getsockname()[1])}


def _report_failure(task: WorkerTask, rank: int, error: OrchestratorError) -> None:
    # When one worker dies, the others fail in their next collective call; theirs is not the cause.
    trace = f"{error.message} {error.details.get('traceback', '')}"
    collateral = _is_peer_loss(error.__cause__) or ("exit_code" in error.details and bool(_PEER_GONE.search(trace)))
    record = {"rank": rank, "error": error.to_json(), "collateral": collateral, "t": time.time()}
    write_json(Path(task.failures) / f"rank-{rank}.json", record)


def _is_peer_loss(error: BaseException | None) -> bool:
    if error is None:
        return False
    import torch

    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(_PEER_GONE.search(str(error)))
