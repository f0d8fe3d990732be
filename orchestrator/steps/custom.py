"""A recipe's own step: a function in this process, or a program."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final

from orchestrator.core.errors import UserCodeError
from orchestrator.core.processes import die_with_parent
from orchestrator.steps.api import FILES, Output, StepContext, StepResult
from orchestrator.steps.user_code import load_entrypoint, user_code
from orchestrator.steps.user_step import StepRun

_TAIL_BYTES: Final = 2000


def run(ctx: StepContext) -> StepResult:
    """Run `entrypoint` with a `StepRun`, or `command` with the folders named in its environment.

    Raises:
        UserCodeError: The function raised, or the program ended with another code than 0 or was not found.
    """
    files = ctx.out / "files"
    files.mkdir()
    params: dict[str, Any] = dict(ctx.spec.get("params", {}))
    metrics: dict[str, float] = {}
    if "entrypoint" in ctx.spec:
        own = StepRun(params, ctx.inputs, files, on_metric=ctx.events.metric, on_progress=ctx.events.progress)
        entrypoint = str(ctx.spec["entrypoint"])
        function = load_entrypoint(entrypoint, ctx.recipe_dir)
        with user_code(entrypoint, ctx.recipe_dir):
            function(own)
        metrics = own.metrics
    else:
        _run_program(ctx, params, str(files))
    return StepResult({"files": Output(files, FILES)}, metrics)


def _run_program(ctx: StepContext, params: dict[str, Any], out: str) -> None:
    command = _words(ctx.spec["command"])
    environment = {
        **os.environ,
        "ORCHESTRATE_OUT": out,
        "ORCHESTRATE_INPUTS_JSON": json.dumps({name: str(path) for name, path in ctx.inputs.items()}),
        "ORCHESTRATE_PARAMS": json.dumps(params),
    }
    found = shutil.which(command[0], path=f"{environment.get('PATH', '')}:{ctx.recipe_dir}")
    if found is None:
        raise UserCodeError(
            f"there is no program {command[0]!r}", place=ctx.step, hint="correct `command`, or install it"
        )
    errors = ctx.out / "stderr"
    with errors.open("wb") as file:
        done = subprocess.run(
            [found, *command[1:]],
            cwd=ctx.recipe_dir,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=file,
            check=False,
            preexec_fn=die_with_parent,
        )
    said = errors.read_bytes()
    sys.stderr.write(said.decode(errors="replace"))
    if done.returncode != 0:
        tail = said[-_TAIL_BYTES:].decode(errors="replace").strip()
        raise UserCodeError(
            f"{shlex.join(command)[:200]} ended with code {done.returncode}" + (f": {tail[-300:]}" if tail else ""),
            place=ctx.step,
            hint=f"see `orchestrate logs --step {ctx.step}`",
            details={"exit_code": done.returncode, "stderr": tail},
        )


def _words(command: str | Sequence[str]) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else list(command)
