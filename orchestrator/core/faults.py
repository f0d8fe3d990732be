"""Named fault points: places where a test may kill, fail or hang the process.

`ORCHESTRATE_FAULT=name:kill` arms one point; `ORCHESTRATE_FAULT_LOG=path` records each point that is passed, one line
`name` per passing and `name fired` when armed, so that a test can enumerate the points and assert that its fault fired.
Production costs one comparison with a module constant.

    armed forms: name:kill | name:raise | name:hang | name:term      name#3:kill fires at the third passing
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from orchestrator.core.errors import InfraError

_FAULT: Final = os.environ.get("ORCHESTRATE_FAULT", "")
_LOG: Final = os.environ.get("ORCHESTRATE_FAULT_LOG", "")
_ACTIVE: Final = bool(_FAULT or _LOG)
_passed: dict[str, int] = {}


def point(name: str) -> None:
    """Mark a place. Does nothing unless a test has armed it."""
    if _ACTIVE:
        _pass(name)


def _pass(name: str) -> None:
    _passed[name] = _passed.get(name, 0) + 1
    target, _, action = _FAULT.partition(":")
    wanted, _, count = target.partition("#")
    fires = wanted == name and _passed[name] == int(count or 1) and not _fired_before(name)
    _log(f"{name} fired" if fires else name)
    if fires:
        _fire(name, action)


def _fired_before(name: str) -> bool:
    """With a log, a fault fires once in all: the retry of a killed worker then shows that it recovers."""
    return bool(_LOG) and Path(_LOG).exists() and f"{name} fired\n" in Path(_LOG).read_text(encoding="utf-8")


def _log(line: str) -> None:
    if not _LOG:
        return
    with Path(_LOG).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _fire(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif action == "hang":
        time.sleep(3600)
    elif action == "raise":
        raise InfraError(f"fault point {name} fired", hint="this is a test")
    else:
        raise ValueError(f"unknown fault action {action!r}")
