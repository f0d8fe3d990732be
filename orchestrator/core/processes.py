"""Child processes that die with us, and proof that a process is the one we started."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True)
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A pid alone is reused; with its start time (clock ticks since boot, /proc/PID/stat field 22) it is unique."""

    pid: int
    started_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Return the identity of a live process, or None."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] == "Z" else cls(pid, int(fields[19]))

    @classmethod
    def own(cls) -> ProcessIdentity:
        """Return our own identity."""
        identity = cls.of(os.getpid())
        assert identity is not None
        return identity

    def alive(self) -> bool:
        """Tell whether this very process still runs."""
        return ProcessIdentity.of(self.pid) == self


def die_with_parent(parent_pid: int = 0) -> None:
    """Ask the kernel for SIGKILL when the thread that started us ends; call it in the first line of a child.

    Args:
        parent_pid: The parent as it knew itself; if it is gone already we end at once. 0 = do not check.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent_pid and os.getppid() != parent_pid:
        os._exit(1)


def resident_bytes(pid: int) -> int:
    """Return what a process holds in memory; 0 for one that is gone."""
    if not pid:
        return 0
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def pids_with_environment(name: str, value: str) -> Iterator[int]:
    """Yield pids of our user's processes whose environment holds `name=value`; daemons that re-parented included."""
    needle = f"{name}={value}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if needle in variables:
            yield int(entry.name)


def end_processes(pids: list[int], *, grace_s: float = 3.0) -> list[int]:
    """SIGTERM, wait up to `grace_s`, SIGKILL; returns the pids that outlived even that for 2 s more."""
    identities = [identity for pid in pids if (identity := ProcessIdentity.of(pid)) is not None]
    for signal_number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 2.0)):
        for identity in identities:
            if identity.alive():
                _send(identity.pid, signal_number)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and any(identity.alive() for identity in identities):
            time.sleep(0.02)
        identities = [identity for identity in identities if identity.alive()]
        if not identities:
            break
    return [identity.pid for identity in identities]


def _send(pid: int, signal_number: int) -> None:
    try:
        os.kill(pid, signal_number)
    except ProcessLookupError:
        return
