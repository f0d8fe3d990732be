"""Run a function in a process of its own with a fault armed: a real process that a real SIGKILL ends, without a slow start.

It is forked from a server that has loaded what is slow to load and used nothing of it, not from the process of the tests:
libraries that those have used by then (gRPC, OpenSSL in libpq) may crash in a child forked beside their threads.
"""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import cloudpickle

from orchestrator.core import faults

_SERVER: Final = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["orchestrator.ledger", "orchestrator.rollout.lead", "psycopg", "mlflow", "mlflow.pyfunc", "cloudpickle", "pytest"]
)


def run_forked(work: Callable[[], object], *, fault: str = "", log: Path | None = None) -> int:
    """Return the child's exit code: -9 when SIGKILL ended it, 1 when the work raised (its traceback is printed here).

    Args:
        work: Travels by value, with what it closes over; opens its own ledgers.
        fault: Armed in the child, as in `ORCHESTRATE_FAULT`.
        log: Where the child writes the fault points that it passes.
    """
    with TemporaryDirectory() as folder:
        told = Path(folder) / "traceback"
        child = start_forked(work, fault=fault, log=log, told=told)
        child.join()
        if told.exists():
            print(told.read_text(), file=sys.stderr)
    assert child.exitcode is not None
    return child.exitcode


def start_forked(
    work: Callable[[], object], *, fault: str = "", log: Path | None = None, told: Path | None = None
) -> BaseProcess:
    """Start it, and do not wait for its end.

    Args:
        work: As in `run_forked`, as are the next two.
        fault: Armed in the child.
        log: For the fault points.
        told: Where it leaves a traceback.
    """
    module = sys.modules.get(getattr(getattr(work, "func", work), "__module__", ""))
    if module is not None and not module.__name__.startswith(("support.", "orchestrator.")):
        cloudpickle.register_pickle_by_value(module)  # a test's module has no name that another process can import
    child = _SERVER.Process(target=_child, args=(cloudpickle.dumps(work), fault, str(log or ""), told))
    child.start()
    return child


def _child(work: bytes, fault: str, log: str, told: Path | None) -> None:
    state: Any = faults
    state._FAULT, state._LOG, state._ACTIVE = fault, log, True
    state._passed.clear()
    try:
        cloudpickle.loads(work)()
    except BaseException:
        if told is None:
            raise
        told.write_text(traceback.format_exc())
        sys.exit(1)


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
