"""A recipe's own step: a function in this process, or a program."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import threading
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
    here = ctx.recipe_dir / command[0]  # `./go.sh`, `bin/go`: beside the recipe, wherever `orchestrate` was called
    path = f"{environment.get('PATH', os.defpath)}:{ctx.recipe_dir}"
    found = shutil.which(here if "/" in command[0] else command[0], path=path)
    if found is None:
        raise UserCodeError(
            f"there is no program {command[0]!r}", place=ctx.step, hint="correct `command`, or install it"
        )
    process = _start([found, *command[1:]], ctx, environment)
    said = _Errors(process)
    code = process.wait()
    if code != 0:
        tail = said.tail()
        raise UserCodeError(
            f"{shlex.join(command)[:200]} ended with code {code}" + (f": {tail[-300:]}" if tail else ""),
            place=ctx.step,
            hint=f"see `orchestrate logs --step {ctx.step}`",
            details={"exit_code": code, "stderr": tail},
        )
    said.tail()


def _start(command: list[str], ctx: StepContext, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            cwd=ctx.recipe_dir,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=die_with_parent,  # noqa: PLW1509  one system call; no lock is taken between fork and exec
        )
    except OSError as error:  # no `#!` line, another machine's program
        raise UserCodeError(
            f"cannot start {command[0]}: {error.strerror}", place=ctx.step, hint="does it begin with a `#!` line?"
        ) from error


class _Errors:
    """Passes on what a program says on stderr while it runs, and remembers the end of it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        self._pipe = process.stderr
        self._tail = b""
        self._thread = threading.Thread(target=self._pass_on, name="stderr", daemon=True)
        self._thread.start()

    def tail(self) -> str:
        """Return the end; a grandchild that lives on and holds the pipe is not waited for long."""
        self._thread.join(1.0)
        return self._tail.decode(errors="replace").strip()

    def _pass_on(self) -> None:
        while data := os.read(self._pipe.fileno(), 1 << 16):
            os.write(2, data)
            self._tail = (self._tail + data)[-_TAIL_BYTES:]


def _words(command: str | Sequence[str]) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else list(command)
