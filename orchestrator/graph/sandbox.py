"""Runs the check of an unknown ONNX file in a child process, whose death is an answer and not an accident.

Checker, shape inference and even the protobuf parser are C++ that reads hostile bytes: they have crashed, hung and eaten all
memory before, and will again. The child has little memory, little time, no core dump and writes one small file; it is sent
no secrets (an empty environment) and only opens the model and its plain files beside it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import orchestrator
from orchestrator.core.errors import GateError, InternalError, error_from_json
from orchestrator.graph.limits import Limits
from orchestrator.graph.weights import NO_FILE

_ROOT: Final = str(Path(orchestrator.__file__).resolve().parent.parent)
_CODE: Final = "import sys; sys.path.append(sys.argv.pop(1)); from orchestrator.graph.checker_child import main; main(sys.argv[1:])"
_LONGEST_LINE: Final = 16 << 20
_LAST_WORDS: Final = 600
_OUT_OF_MEMORY: Final = ("MemoryError", "bad_alloc", "cannot allocate memory", "Cannot allocate memory")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the child said yes to.

    Attributes:
        info: `GraphInfo.to_text()`.
        graph: The serialized graph with all shapes that were found; tensors above 4 KiB have no bytes.
    """

    info: str
    graph: bytes


def check_in_child(path: Path, limits: Limits) -> Answer:
    """Check a file in a child process.

    Raises:
        GateError: The file is refused, or the child died, hung or ran out of something over it.
        InternalError: The child cannot even start.
    """
    with tempfile.TemporaryDirectory(prefix="orchestrate-check-") as name, tempfile.TemporaryFile() as reply:
        folder = Path(name)
        (folder / NO_FILE).touch()
        with tempfile.TemporaryFile() as words:
            code = _run(path, limits, folder, reply, words)
            if code != 0:
                raise _died(path, code, words)
        return _read(path, reply)


def _run(path: Path, limits: Limits, folder: Path, reply: IO[bytes], words: IO[bytes]) -> int:
    command = [sys.executable, "-I", "-c", _CODE, _ROOT, str(path.absolute()), limits.to_text(), str(os.getpid())]
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONMALLOC": "malloc", "LC_ALL": "C.UTF-8"}
    if "LD_LIBRARY_PATH" in os.environ:  # some interpreters need it to start
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    try:
        child = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=reply,
            stderr=words,
            timeout=limits.wall_s,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(path, f"checking it takes longer than {limits.wall_s:g} s") from error
    except OSError as error:
        raise InternalError(f"cannot start {sys.executable}: {error}", hint="repair the Python installation") from error
    return child.returncode


def _died(path: Path, code: int, words: IO[bytes]) -> GateError | InternalError:
    words.seek(0, os.SEEK_END)
    words.seek(max(0, words.tell() - _LAST_WORDS))
    said = words.read().decode(errors="replace").strip()
    if code in {-signal.SIGXCPU, -signal.SIGKILL}:
        return _refused(path, f"checking it takes too much time or memory ({signal.Signals(-code).name})")
    if any(word in said for word in _OUT_OF_MEMORY):
        return _refused(path, "checking it takes too much memory")
    if code < 0:
        return _refused(path, f"checking it kills the checker ({_signal(-code)})")
    if "ModuleNotFoundError" in said or "ImportError" in said:
        return InternalError(f"the checking process cannot start: {said}", hint="repair the Python installation")
    return _refused(path, f"checking it breaks the checker (exit code {code}): {said[-200:]!r}")


def _signal(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _read(path: Path, reply: IO[bytes]) -> Answer:
    reply.seek(0)
    try:
        head: dict[str, Any] = json.loads(reply.readline(_LONGEST_LINE))
    except ValueError as error:
        raise _refused(path, "the checking process gave no answer") from error
    if "error" in head:
        raise error_from_json(head["error"])
    return Answer(str(head["info"]), reply.read())


def _refused(path: Path, what: str) -> GateError:
    return GateError(f"the ONNX file is refused: {what}", place=path.name, hint="export the model again")
