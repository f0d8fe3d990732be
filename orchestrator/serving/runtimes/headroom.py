"""Before a load: room in memory, and no crowd at the device."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Generator
from pathlib import Path
from typing import Final

from orchestrator.core.errors import DeviceError

_MARGIN_BYTES: Final = 128 << 20
_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")


def check_host(folder: Path, *, meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> None:
    """Check that the host can hold the model's files: one that runs out of memory takes its neighbours along.

    Raises:
        DeviceError: It cannot; says how much is needed and free.
    """
    needed = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) + _MARGIN_BYTES
    free = free_bytes(meminfo=meminfo, cgroup=cgroup)
    if free < needed:
        raise DeviceError(
            f"the model needs {needed >> 20} MiB of the host's memory, {int(free) >> 20} MiB are free",
            hint="delete an endpoint of the pool, or give the host more memory",
        )


def free_bytes(*, meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> float:
    """Return what the host, and a container's limit, leave for more models."""
    return min(_available(meminfo), _left_in_group(cgroup))


@contextlib.contextmanager
def first_device(work: Path) -> Generator[None]:
    """Let one replica of the pool at a time open its device: the first time takes seconds, and starts jitter when they meet.

    Args:
        work: The replica's own folder; the lock lies beside it.
    """
    with (work.parent / "first-device.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _available(meminfo: Path) -> float:
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return float("inf")


def _left_in_group(cgroup: Path) -> float:
    """Return what a container's limit leaves; without one there is no limit. Cached files can be given up."""
    try:
        most = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if most == "max" else int(most) - used + int(stat.get("inactive_file", 0))
