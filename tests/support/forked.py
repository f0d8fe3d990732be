"""Run a function in a forked child with a fault armed: a real process that a real SIGKILL ends, without a slow start."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

from orchestrator.core import faults


def run_forked(work: Callable[[], object], *, fault: str = "", log: Path | None = None) -> int:
    """Return the child's wait status as `os.waitstatus_to_exitcode` gives it: -9 when SIGKILL ended it.

    The child must open its own ledgers: a connection does not survive a fork.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            faults._FAULT = fault
            faults._LOG = str(log or "")
            faults._ACTIVE = True
            faults._passed.clear()
            work()
            code = 0
        except BaseException:  # noqa: BLE001  # the child must never return into pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def passings(log: Path) -> list[str]:
    """Return `name#k` for every passing that a run has logged, in order."""
    seen: dict[str, int] = {}
    found: list[str] = []
    for line in log.read_text().splitlines():
        name = line.removesuffix(" fired")
        seen[name] = seen.get(name, 0) + 1
        found.append(f"{name}#{seen[name]}")
    return found


def fired(log: Path) -> bool:
    return log.exists() and any(line.endswith(" fired") for line in log.read_text().splitlines())
