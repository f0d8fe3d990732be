"""Compiling with ATC: a private folder, a time limit for the whole family of processes, and success only when proved.

Success is the text `ATC run success`, exit status 0 and a fresh file that is not empty; anything less is a failure.
A hang gets one more attempt; running out of memory one more with one kernel compiler at a time; a crash gets none, and
leaves its output and its command behind.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from orchestrator.ascend.atc_checks import check
from orchestrator.ascend.atc_failure import failure
from orchestrator.ascend.atc_files import write_files
from orchestrator.ascend.atc_install import AtcInstall
from orchestrator.ascend.atc_options import AtcOptions
from orchestrator.ascend.atc_process import Ended, Tick, private_environment, run_guarded
from orchestrator.ascend.atc_report import (
    Finding,
    UnsupportedNode,
    check_result,
    findings,
    plog_errors,
    succeeded,
    warnings_after_success,
)
from orchestrator.core.faults import point
from orchestrator.core.files import private_folder, write_json

DEFAULT_TIMEOUT_S: Final = 1800.0
_NAME: Final = "model"
_ATTEMPTS: Final = 2
_CRASHES: Final = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}

Outcome = Literal["ok", "hang", "memory", "crash", "no_file", "refused"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of ATC: how it ended, and where its output is kept."""

    number: int
    outcome: Outcome
    ended: Ended
    findings: tuple[Finding, ...] = ()
    unsupported: tuple[UnsupportedNode, ...] = ()
    plog: tuple[str, ...] = ()
    folder: Path = Path()

    def to_json(self) -> dict[str, Any]:
        """Return it as an object, without paths."""
        return {
            "number": self.number,
            "outcome": self.outcome,
            "exit_code": self.ended.code,
            "elapsed_s": round(self.ended.elapsed_s, 3),
        }


@dataclass(frozen=True, slots=True)
class Compiled:
    """What ATC made.

    Attributes:
        model: The .om, in the folder that was asked for.
        files: All files that belong together, the .om first.
        host: Operating system and processor that the .om is bound to; empty where it is bound to none.
        warnings: What ATC said after its success, and what we have to say about the options.
    """

    model: Path
    files: tuple[Path, ...]
    command: tuple[str, ...]
    version: str
    host: str
    elapsed_s: float
    attempts: tuple[Attempt, ...]
    warnings: tuple[str, ...] = field(default=())


class Atc:
    """The ATC of a machine."""

    def __init__(self, install: AtcInstall) -> None:
        self._install = install

    @property
    def version(self) -> str:
        """Version of the toolkit."""
        return self._install.version

    def command(self, options: AtcOptions) -> list[str]:
        """Return the exact argument list; the files that `aipp` and others need are not written by this."""
        check(options)
        return options.command(self._install.program)

    def compile(
        self,
        options: AtcOptions,
        out: Path,
        *,
        work: Path,
        inputs: tuple[str, ...] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
        on_tick: Tick = lambda _elapsed, _line: None,
        source_of: Callable[[str], str] = lambda _node: "",
    ) -> Compiled:
        """Compile, and put the result into `out`, which holds nothing new before success is proved.

        Args:
            options: `output` is replaced by a path in a private folder.
            out: Folder for the .om and, where asked for, its weights.
            work: Folder for logs and private folders; logs of failed attempts stay there.
            inputs: Names of the model's inputs, for AIPP.
            timeout_s: Limit of one attempt, in seconds.
            on_tick: Called about once a second with the elapsed seconds and ATC's last line.
            source_of: Node -> `file:line` of the user's model, or an empty text.

        Raises:
            PlanError: Options exclude each other, or ATC refused one.
            GateError: The model cannot be compiled; `details.nodes` names each node with its source line.
            InternalError: A crash, a hang or no memory, twice; a broken installation.
        """
        notes = [item.text for item in check(options)]
        attempts: list[Attempt] = []
        environment: dict[str, str] = {}
        for number in range(1, _ATTEMPTS + 1):
            attempt, made = self._attempt(number, options, work, inputs, timeout_s, environment, on_tick)
            attempts.append(attempt)
            if attempt.outcome == "ok":
                point("atc.before_move")
                files = _move(made, out)
                shutil.rmtree(
                    attempt.folder.parent / "cwd", ignore_errors=True
                )  # kernels by the hundred; the log stays
                said = warnings_after_success(attempt.ended.text)
                return Compiled(
                    files[0], files, attempt.ended.command, self.version, _host(made[0], options),
                    attempt.ended.elapsed_s, tuple(attempts), (*notes, *said),
                )  # fmt: skip
            if attempt.outcome == "memory":
                environment = {"TE_PARALLEL_COMPILER": "1"}
            elif attempt.outcome != "hang":
                break
        raise failure(attempts, timeout_s, source_of)

    def _attempt(
        self,
        number: int,
        options: AtcOptions,
        work: Path,
        inputs: tuple[str, ...],
        timeout_s: float,
        extra: dict[str, str],
        on_tick: Tick,
    ) -> tuple[Attempt, tuple[Path, ...]]:
        folder = work.absolute() / f"atc-{number}"
        shutil.rmtree(folder, ignore_errors=True)  # so that no file of an earlier run can be taken for ours
        for name in ("out", "cwd", "config"):
            private_folder(folder / name)
        report = folder / "cwd" / "check_result.json"
        update = {"output": folder / "out" / _NAME, "check_report": report, "model": options.model.absolute()}
        ready = write_files(options.model_copy(update=update), folder / "config", inputs=inputs)
        base = self._install.environment(os.environ)
        environment = private_environment(folder / "private", base, extra)
        command = ready.command(self._install.program)
        write_json(folder / "command.json", {"command": command, "environment": extra, "cwd": "private"})
        ended = run_guarded(
            command,
            cwd=folder / "cwd",
            environment=environment,
            logs=folder / "logs",
            timeout_s=timeout_s,
            on_tick=on_tick,
        )
        files = _made(folder / "out")
        text = f"{ended.text}\n{ended.error_text}"
        outcome = _outcome(ended, files, found := findings(text))
        attempt = Attempt(
            number, outcome, ended, found, check_result(report), plog_errors(folder / "private"), folder / "logs"
        )
        shutil.rmtree(folder / "private", ignore_errors=True)
        return attempt, files


def _made(folder: Path) -> tuple[Path, ...]:
    """Return the one .om, `model.om` or `model_linux_<arch>.om`, and its files of weights; nothing where there is none."""
    models = sorted(path for path in folder.glob(f"{_NAME}*.om") if path.is_file() and not path.is_symlink())
    if len(models) != 1 or models[0].stat().st_size == 0:
        return ()
    rest = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path not in models)
    return (*models, *rest)


def _outcome(ended: Ended, files: tuple[Path, ...], found: tuple[Finding, ...]) -> Outcome:
    if ended.code is None:
        return "hang"
    number = -ended.code if ended.code < 0 else ended.code - 128  # the wrapper script reports 128 + the signal
    if number == signal.SIGKILL or (ended.code != 0 and any(item.explanation.kind == "memory" for item in found)):
        return "memory"
    if number in _CRASHES or ended.code < 0:
        return "crash"
    if ended.code == 0 and succeeded(ended.text):
        return "ok" if files else "no_file"
    return "refused"


def _move(files: tuple[Path, ...], out: Path) -> tuple[Path, ...]:
    """Put the files into `out` under plain names; the model last, so that it is never there without its weights."""
    base = files[0].parent
    moved: list[Path] = []
    for file in reversed(files):
        target = out / (f"{_NAME}.om" if file == files[0] else file.relative_to(base))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
        moved.append(target)
    return tuple(reversed(moved))


def _host(model: Path, options: AtcOptions) -> str:
    if options.host_env_cpu is not None:
        return f"linux_{options.host_env_cpu}"
    return f"linux_{platform.machine()}" if model.stem != _NAME else ""
