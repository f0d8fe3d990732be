"""A server and everything it ever started, known by one variable of the environment that children inherit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from orchestrator.core.processes import end_processes, pids_with_environment

MARK: Final = "SERVING_BENCH_MARK"
_TICK_US: Final = 1e6 / os.sysconf("SC_CLK_TCK")
_PAGE_MIB: Final = os.sysconf("SC_PAGE_SIZE") / 2**20


def members(mark: str) -> set[int]:
    """Return the marked processes and all their descendants: a daemon that re-parents, and one that changes its environment."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (row := _stat(int(entry.name))):
            children.setdefault(int(row[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = list(pids_with_environment(MARK, mark))
    while waiting:
        pid = waiting.pop()
        if pid not in found and pid != os.getpid():
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def cpu_us(pids: Iterable[int]) -> dict[int, float]:
    """Return user and system time of each process, and of its children that it has waited for."""
    rows = {pid: _stat(pid) for pid in pids}
    return {pid: sum(map(int, row[11:15])) * _TICK_US for pid, row in rows.items() if row}


def memory_mib(pids: Iterable[int]) -> float:
    """Return the resident memory of these processes, shared pages counted for each."""
    return sum(int(row[21]) * _PAGE_MIB for pid in pids if (row := _stat(pid)))


def end_all(mark: str) -> None:
    """End all of it, also what starts meanwhile; in vain tries end after some seconds with an error.

    Raises:
        RuntimeError: Some process cannot be ended.
    """
    deadline = time.monotonic() + 30
    grace_s = 6.0
    while alive := {pid for pid in members(mark) if (row := _stat(pid)) and row[0] != "Z"}:
        end_processes(sorted(alive), grace_s=grace_s)
        grace_s = 0.5
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {sorted(alive)} cannot be ended")


def _stat(pid: int) -> list[str]:
    """Return the fields of `/proc/PID/stat` from the state on; nothing for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
