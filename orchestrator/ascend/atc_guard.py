"""Runs one command and leaves nothing of it behind: a script of its own, started by path, with the standard library alone.

ATC is a shell script around a program that starts compilers of its own, some in sessions of their own. A process group does
not hold those and a parent's death signal reaches only the first. So this process adopts every orphan (subreaper), and when
the command ends, when we are told to stop, or when our starter dies, it kills all that descends from it.

    python -I -S atc_guard.py PARENT_PID STATUS_FILE COMMAND...

STATUS_FILE then holds {"code": exit code, negative for a signal, null when it was stopped}.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOPPING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_WATCHED = {*_STOPPING, signal.SIGCHLD}
_LONGEST_KILL_S = 10.0


def main(arguments: list[str]) -> int:
    """Run the command under guard."""
    parent, status_file, command = int(arguments[0]), arguments[1], arguments[2:]
    libc = ctypes.CDLL(None)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        return 1
    child = os.fork()
    if child == 0:
        _become(libc, command)
    code = _watch(child)
    _kill_all()
    with open(status_file, "w", encoding="ascii") as file:  # noqa: PTH123  pathlib would double the start of this script
        json.dump({"code": code}, file)
    return 0


def _become(libc: ctypes.CDLL, command: list[str]) -> None:
    try:
        os.setsid()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        os.execv(command[0], command)  # noqa: S606  no shell is wanted
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _watch(child: int) -> int | None:
    """Return how the command ended; None when we were told to stop first."""
    while True:
        told = signal.sigtimedwait(_WATCHED, 1.0)
        for pid, status in _ended():
            if pid == child:
                return os.waitstatus_to_exitcode(status)
        if told is not None and told.si_signo in _STOPPING:
            return None


def _ended() -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, status))


def _kill_all() -> None:
    deadline = time.monotonic() + _LONGEST_KILL_S
    while (alive := _descendants()) and time.monotonic() < deadline:
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.005)
        _ended()


def _descendants() -> list[int]:
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(fields[1])
    found, todo = list[int](), [os.getpid()]
    while todo:
        parent = todo.pop()
        children = [pid for pid, of in parents.items() if of == parent]
        found += children
        todo += children
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
