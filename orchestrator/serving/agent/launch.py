"""How a replica gets a process of its own, and what any replica is told at its start."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final, Protocol

from orchestrator.serving.agent.slot_device import cann_variables
from orchestrator.serving.config import AgentSettings
from orchestrator.serving.link.wire import Placement
from orchestrator.serving.runtimes.api import REHEARSAL
from orchestrator.serving.serve_settings import MODEL

PROGRAM: Final = (sys.executable, "-m", "orchestrator.serving.replica.process")


class Running(Protocol):
    """A replica that runs, in whatever process."""

    @property
    def pid(self) -> int:
        """Of its process."""
        ...

    async def wait(self) -> int:
        """Return its exit code once it has ended; a signal's number is negative."""
        ...

    def send_signal(self, number: int, /) -> None:
        """SIGTERM lets it drain, SIGKILL ends it.

        Raises:
            ProcessLookupError: It has ended.
        """
        ...


def variables_of(placement: Placement, settings: AgentSettings) -> dict[str, str] | None:
    """Return the replica's environment: our own (None), and where it uses a real device CANN's on top.

    Raises:
        DeviceError: There is no CANN.
    """
    if placement.device == REHEARSAL or placement.stage != MODEL:
        return None
    return cann_variables(settings.tools.get("cann_env", ""))


async def start_alone(config: Path, status: int, log_path: Path, variables: dict[str, str] | None) -> Running:
    """Start a process for one replica; `status` is the end of a pipe that it writes to."""
    rotate(log_path)
    with log_path.open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *PROGRAM,
            "--config",
            str(config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(status,),
            env=variables,
        )


def rotate(log_path: Path) -> None:
    """Keep the log of the process before."""
    if log_path.exists() and log_path.stat().st_size:
        log_path.replace(log_path.with_suffix(".previous.log"))


def replica_settings(
    placement: Placement, settings: AgentSettings, *, replica: str, work: Path, status: int, slot: str, load: str
) -> dict[str, object]:
    """Return the content of the replica's settings file."""
    return {
        "replica": replica,
        "link": settings.link,
        "links": list(settings.links),
        "endpoint": placement.endpoint,
        "bundle": placement.bundle,
        "path": placement.path,
        "runtime": placement.runtime,
        "device": placement.device,
        "variant": placement.variant,
        "variant_path": placement.variant_path,
        "stage": placement.stage,
        "work": str(work),
        "tools": dict(settings.tools),
        "stall_s": settings.stall_s,
        "load_s": settings.load_s,
        "parent_pid": os.getpid(),
        "status_fd": status,
        "slot": slot,
        "load": load,
    }
