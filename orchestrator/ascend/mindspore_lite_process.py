"""One call of MindSpore Lite: a child process of the interpreter that holds it, in a private folder, ended by its group.

Native code dies by a signal in about one conversion of eight, hangs on some graphs, and prints `ERROR` while it succeeds.
So nothing of it runs in our process, what counts is its answer file, and its text is kept for people.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.core.errors import EnvironmentFileError, InfraError

_SCRIPT: Final = Path(__file__).with_name("mindspore_lite_child.py")
_PASSED_ON: Final = ("PATH", "LD_LIBRARY_PATH", "TOOLCHAIN_HOME")
_LONGEST_LOG: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Finished:
    """What one child process left.

    Attributes:
        answer: Its answer; empty when it died before.
        log: End of its stdout and stderr, native text included.
        stage: What it was doing last: `import`, `convert`, `build`, `predict N`.
        died_of: Signal name, e.g. `SIGSEGV`; empty when it ended by itself.
        folder: Its private folder, with what it wrote.
    """

    answer: Mapping[str, Any]
    log: str
    stage: str
    died_of: str
    folder: Path


def call(python: Path, work: Path, request: Mapping[str, Any], *, timeout_s: float) -> Finished:
    """Run one request; a death by a signal is tried once more.

    Args:
        python: The interpreter that has mindspore_lite.
        work: Private folder; each attempt gets a folder of its own inside.
        request: As `mindspore_lite_child.py` reads it.
        timeout_s: Limit of each attempt, seconds.

    Raises:
        InfraError: It did not end in time.
        EnvironmentFileError: The interpreter cannot be started or lacks mindspore_lite.
    """
    finished = _attempt(python, work / "first", request, timeout_s)
    if finished.died_of:
        finished = _attempt(python, work / "second", request, timeout_s)
    if finished.stage == "import" and "error" in finished.answer:
        raise _unusable(python, str(finished.answer["error"]), finished.log)
    return finished


def _attempt(python: Path, folder: Path, request: Mapping[str, Any], timeout_s: float) -> Finished:
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps({**request, "parent_pid": os.getpid()}), encoding="utf-8")
    command = [str(python), "-I", str(_SCRIPT), str(folder)]
    with (folder / "log").open("wb") as log:
        try:
            child = subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise _unusable(python, str(error), "") from error
        try:
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:  # also on Ctrl-C: nothing of the group outlives this call
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    stage = _text(folder / "stage").strip() or "start"
    log_text = _text(folder / "log")
    if status is None:
        raise InfraError(
            f"MindSpore Lite did not end in {timeout_s:g} s; it was at {stage!r}",
            hint="a Loop or Scan can hang its converter: see `orchestrate coverage --toolchain mindspore-lite`",
            details={"reason": "timeout", "stage": stage, "log": log_text[-4000:]},
        )
    answer = _answer(folder)
    died_of = signal.Signals(-status).name if status < 0 else ""
    if not answer and not died_of:
        raise _unusable(python, f"exit status {status} without an answer", log_text)
    return Finished(answer, log_text, stage, died_of, folder)


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of ours but the way to CANN's libraries: no secrets, no PYTHON*, logs and caches in the private folder."""
    kept = {name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith("ASCEND_")}
    return kept | {"HOME": str(folder), "TMPDIR": str(folder), "LC_ALL": "C.UTF-8"}


def _answer(folder: Path) -> Mapping[str, Any]:
    try:
        return json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LONGEST_LOG))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _unusable(python: Path, why: str, log: str) -> EnvironmentFileError:
    return EnvironmentFileError(
        f"{python} cannot run MindSpore Lite: {why}",
        hint="`tools.mindspore_lite_python` names an interpreter with mindspore-lite (2.0.0 wants CPython 3.7 and numpy)",
        details={"reason": "unusable", "log": log[-4000:]},
    )
