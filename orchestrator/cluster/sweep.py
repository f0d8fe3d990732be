"""Find and end every process of a site, also those that re-parented or that overwrote their environment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orchestrator.cluster.site import MARKER
from orchestrator.core.processes import ProcessIdentity, end_processes, pids_with_environment

_ROUNDS: Final = 5


def site_processes(site_id: str) -> list[ProcessIdentity]:
    """Return the live processes of a site, ourselves and our ancestors excepted.

    Some of Ray's processes rename themselves over their own environment (setproctitle), so the marker is not enough:
    the sessions that marked processes live in count too, when the leader is marked or dead. The supervisor leads a
    session of its own, hence a user's shell is never one of these.
    """
    spared = set(_ancestors())
    marked = set(pids_with_environment(MARKER, site_id))
    sessions = {session for pid in marked if (session := _session(pid))}
    own = {session for session in sessions if session in marked or ProcessIdentity.of(session) is None}
    own -= {os.getsid(0)}
    found = marked | {pid for pid in _all_pids() if _session(pid) in own}
    identities = (ProcessIdentity.of(pid) for pid in sorted(found - spared))
    return [identity for identity in identities if identity is not None]


def end_site(site_id: str, first: ProcessIdentity | None, *, grace_s: float) -> list[int]:
    """End every process of a site; `first` (the supervisor) before the rest, so that it starts nothing anew.

    Returns:
        The pids that no signal ended.
    """
    if first is not None and first.alive():
        end_processes([first.pid], grace_s=0.5)
    left: list[int] = []
    for attempt in range(_ROUNDS):
        pids = [process.pid for process in site_processes(site_id)]
        if not pids:
            return []
        left = end_processes(pids, grace_s=grace_s if attempt == 0 else 0.0)
    return left


def end_children(session: int, keep: set[int]) -> None:
    """End each process of `session` at once, but those in `keep`; for a supervisor that starts Ray anew."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        pids = [pid for pid in _all_pids() if pid not in keep and _session(pid) == session and ProcessIdentity.of(pid)]
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def _all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return 0


def _ancestors() -> Iterator[int]:
    pid = os.getpid()
    while pid > 1:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return
