"""Starting a compiler so that nothing of it outlives us: time limit, capped logs, a private HOME, no secrets of ours."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from orchestrator.ascend import atc_guard
from orchestrator.core.errors import InternalError
from orchestrator.core.ids import new_token
from orchestrator.core.processes import end_processes, pids_with_environment
from orchestrator.core.redact import redact

_HEAD_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 2 << 20
_TICK_S: Final = 1.0
_PATIENCE_S: Final = 15.0
_MARK: Final = "ORCHESTRATE_ATC_RUN"
_NOT_OURS: Final = frozenset(
    {"ASCEND_SLOG_PRINT_TO_STDOUT", "ASCEND_WORK_PATH", "ASCEND_CACHE_PATH", "NPU_COLLECT_PATH"}
)
"""Variables that would send the compiler's files or logs elsewhere."""

Tick = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit status; negative is the signal that ended it; None when its time was up.
        stdout: Log, at most 3 MiB: its beginning and its end.
    """

    command: tuple[str, ...]
    code: int | None
    elapsed_s: float
    stdout: Path
    stderr: Path

    @property
    def timed_out(self) -> bool:
        """Whether its time was up."""
        return self.code is None

    @property
    def text(self) -> str:
        """What it wrote to stdout; bytes that are no UTF-8 are replaced."""
        return self.stdout.read_bytes().decode(errors="replace")

    @property
    def error_text(self) -> str:
        """What it wrote to stderr."""
        return self.stderr.read_bytes().decode(errors="replace")


def private_environment(
    folder: Path, base: Mapping[str, str], extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return an environment whose HOME and caches lie below `folder`, without secrets of `base`."""
    kept = {k: v for k, v in base.items() if k not in _NOT_OURS and redact({k: v}) == {k: v}}
    places = {"HOME": "home", "ASCEND_WORK_PATH": "ascend", "ASCEND_CACHE_PATH": "cache", "TMPDIR": "tmp"}
    for name in places.values():
        (folder / name).mkdir(parents=True, exist_ok=True)
    return {**kept, **{key: str(folder / name) for key, name in places.items()}, **(extra or {})}


def run_guarded(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    logs: Path,
    timeout_s: float,
    on_tick: Tick = lambda _elapsed, _line: None,
) -> Ended:
    """Run a command to its end or to its time limit; afterwards none of its processes is left.

    Raises:
        InternalError: It cannot be started.
    """
    logs.mkdir(parents=True, exist_ok=True)
    status, mark = logs / "status.json", new_token(12)
    status.unlink(missing_ok=True)
    guard = [sys.executable, "-I", "-S", str(Path(atc_guard.__file__)), str(os.getpid()), str(status), *command]
    started = time.monotonic()
    process = subprocess.Popen(
        guard, cwd=cwd, env={**environment, _MARK: mark}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    pump = _Pump(process, logs)
    try:
        timed_out = not pump.run(started, timeout_s, on_tick)
    finally:
        _end(process)
        end_processes(list(pids_with_environment(_MARK, mark)), grace_s=0.0)
        pump.close()
    code = None if timed_out else _code(status)
    ended = Ended(tuple(command), code, time.monotonic() - started, logs / "stdout.log", logs / "stderr.log")
    if code == 127 and "cannot start" in ended.error_text:
        raise InternalError(ended.error_text.strip(), place=command[0], hint="check the program's path and permissions")
    return ended


class _Pump:
    """Copies both pipes into capped logs while the command runs."""

    def __init__(self, process: subprocess.Popen[bytes], logs: Path) -> None:
        self._process = process
        self._selector = selectors.DefaultSelector()
        self._logs: dict[int, _CappedLog] = {}
        self._last = ""
        for stream, name in ((process.stdout, "stdout.log"), (process.stderr, "stderr.log")):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ)
            self._logs[stream.fileno()] = _CappedLog(logs / name)

    def run(self, started: float, timeout_s: float, on_tick: Tick) -> bool:
        """Return whether the command ended in time."""
        told = started
        while self._selector.get_map() or self._process.poll() is None:
            left = started + timeout_s - time.monotonic()
            if left <= 0:
                return False
            if self._selector.get_map():
                self._read(min(_TICK_S, left))
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(min(_TICK_S, left))
            if time.monotonic() - told >= _TICK_S:
                told = time.monotonic()
                on_tick(told - started, self._last)
        return True

    def close(self) -> None:
        """Read what is left and write the logs."""
        if self._selector.get_map():
            self._read(0)
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
        self._selector.close()
        for log in self._logs.values():
            log.close()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _read(self, wait_s: float) -> None:
        for key, _ in self._selector.select(wait_s):
            data = os.read(key.fd, 1 << 16)
            if not data:
                self._selector.unregister(key.fileobj)
                continue
            self._logs[key.fd].write(data)
            lines = data.decode(errors="replace").strip().splitlines()
            self._last = lines[-1][-200:] if lines else self._last


class _CappedLog:
    """A log that keeps its beginning and its end, however much is written."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("wb")
        self._room = _HEAD_BYTES
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._dropped = 0

    def write(self, data: bytes) -> None:
        head, rest = data[: self._room], data[self._room :]
        self._room -= len(head)
        self._file.write(head)
        if rest:
            self._tail.append(rest)
            self._tail_bytes += len(rest)
        while self._tail_bytes > _TAIL_BYTES and len(self._tail) > 1:
            gone = len(self._tail.popleft())
            self._tail_bytes -= gone
            self._dropped += gone

    def close(self) -> None:
        if self._dropped:
            self._file.write(f"\n[... {self._dropped} bytes left out ...]\n".encode())
        self._file.writelines(self._tail)
        self._file.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Have the guard end everything; a guard that does not is ended too, and the sweep by mark finds the rest."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _code(status: Path) -> int:
    try:
        code = json.loads(status.read_bytes())["code"]
    except (OSError, ValueError, KeyError):
        return -signal.SIGKILL  # the guard itself was killed, which only the kernel's OOM killer does
    return int(code) if code is not None else -signal.SIGTERM
