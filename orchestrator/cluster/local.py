"""The local site: up, down, status. It outlives the command that starts it, and any command can pick it up again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from orchestrator.cluster.devices import check_devices, npu_devices
from orchestrator.cluster.pool import LocalPool
from orchestrator.cluster.ray_head import AUTH, LOOPBACK, clean_environment
from orchestrator.cluster.site import (
    PARTS,
    LocalSite,
    PoolStatus,
    SiteStatus,
    open_runtime,
    read_record,
    status,
)
from orchestrator.cluster.sweep import end_site, site_processes
from orchestrator.core import faults
from orchestrator.core.errors import Conflict, InfraError
from orchestrator.core.files import private_folder, write_atomic, write_json
from orchestrator.core.ids import check_name, new_token

__all__ = ["PARTS", "LocalPool", "LocalSite", "PoolStatus", "SiteStatus", "down", "driver_environment", "status", "up"]

_POLL_S: Final = 0.03
_LOCK_S: Final = 60.0
_SUPERVISOR_S: Final = 20.0
_GRACE_S: Final = 1.5
_started: list[subprocess.Popen[bytes]] = []
"""Supervisors that this process started; kept so that they are reaped and never waited for."""


def up(
    site: LocalSite,
    *,
    timeout_s: float = 120.0,
    wait_for: Sequence[str] = PARTS,
    on_wait: Callable[[SiteStatus], None] | None = None,
) -> SiteStatus:
    """Bring the site up, or find that it is up; returns when every part of `wait_for` is ready.

    Args:
        site: What it should be.
        timeout_s: How long to wait for the parts.
        wait_for: Some of `PARTS`; `("ray",)` returns while agents still come up.
        on_wait: Called with the status when it changes.

    Raises:
        DeviceError: A pool asks for NPUs that this machine lacks.
        Conflict: The site is up with other pools, or another `up` or `down` runs.
        InfraError: A part failed, or was not ready in time.
    """
    check_name(site.name, "site")
    deadline = time.monotonic() + timeout_s
    if not _supervised(site):
        devices = npu_devices()
        site.serving.check()
        check_devices(site.pools, devices)
        with _locked(site):
            faults.point("cluster.up.locked")
            if not _supervised(site):
                _start(site, len(devices))
    return _wait(site, wait_for, deadline, timeout_s, on_wait)


def down(site: LocalSite) -> None:
    """End the site: every process, socket, temp file and lock. Its table, logs and port stay for the next `up`.

    Raises:
        Conflict: Another `up` or `down` runs.
        InfraError: A process outlived SIGKILL.
    """
    if not site.folder.exists() and not site.runtime.exists() and not site_processes(site.id):
        return
    with _locked(site):
        faults.point("cluster.down.locked")
        _clear(site)
        faults.point("cluster.down.cleared")
        site.token_path.unlink(missing_ok=True)
        site.lock_path.unlink(missing_ok=True)


def driver_environment(status: SiteStatus) -> dict[str, str]:
    """Return what a process needs in its environment before it imports Ray; then a plain `ray.init()` connects.

    Without the loopback setting a driver looks for the head at the host's address and hangs.
    """
    return {**LOOPBACK, **AUTH, "RAY_ADDRESS": status.ray_address, "RAY_AUTH_TOKEN_PATH": status.ray_token_path}


def _supervised(site: LocalSite) -> bool:
    """Tell whether the supervisor lives and runs what is asked; a site with other pools is refused."""
    record = read_record(site.record_path)
    if record is None or not record.alive("supervisor"):
        return False
    wanted: Any = site.pools_json()
    if dict(record.wanted) != wanted:
        raise Conflict(
            f"site {site.name} is up with pools {sorted(record.wanted)}, asked are {sorted(wanted)} or other slots",
            hint="run `orchestrate down` first: Ray's resources cannot change while it runs",
        )
    asked = asdict(site.serving)
    changed = [name for name, value in asked.items() if record.serving.get(name) != value]
    if changed:
        raise Conflict(
            f"site {site.name} is up with another `serving`: {', '.join(changed)} changed",
            hint="run `orchestrate down` first, or ask for what runs",
        )
    return True


def _start(site: LocalSite, npus: int) -> None:
    _clear(site)
    private_folder(site.folder)
    private_folder(site.logs)
    write_atomic(site.token_path, new_token().encode(), mode=0o600)
    settings = site.folder / "supervisor.json"
    asked: dict[str, Any] = {"name": site.name, "state": str(site.state), "pools": site.pools_json()}
    asked |= {"tools": dict(site.tools), "serving": asdict(site.serving), "npus": npus}
    write_json(settings, asked, mode=0o600)
    open_runtime(site.runtime)
    faults.point("cluster.up.prepared")
    env = clean_environment(site)
    # The supervisor itself may be under test; its children are not (see clean_environment).
    env |= {name: value for name, value in os.environ.items() if name.startswith("ORCHESTRATE_FAULT")}
    with (site.logs / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrator.cluster.supervisor", str(settings)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=site.runtime,
            env=env,
            start_new_session=True,
        )
    _started.append(process)
    faults.point("cluster.up.spawned")
    _await_record(site, process)
    faults.point("cluster.up.recorded")


def _await_record(site: LocalSite, process: subprocess.Popen[bytes]) -> None:
    """Hold the lock until the supervisor can be found by the next command."""
    deadline = time.monotonic() + _SUPERVISOR_S
    while time.monotonic() < deadline and process.poll() is None:
        record = read_record(site.record_path)
        if record is not None and record.alive("supervisor"):
            return
        time.sleep(_POLL_S)
    raise InfraError(f"the supervisor of site {site.name} did not start", hint=f"read {site.logs / 'supervisor.log'}")


def _clear(site: LocalSite) -> None:
    """End what is left of the site and remove what only a running site has."""
    record = read_record(site.record_path)
    left = end_site(site.id, record.processes.get("supervisor") if record else None, grace_s=_GRACE_S)
    if left:
        raise InfraError(f"processes {left} of site {site.name} do not end", hint="are they stuck in the kernel?")
    faults.point("cluster.ended")
    if site.runtime.exists():
        shutil.rmtree(open_runtime(site.runtime))
    site.record_path.unlink(missing_ok=True)


def _wait(
    site: LocalSite,
    wait_for: Sequence[str],
    deadline: float,
    timeout_s: float,
    on_wait: Callable[[SiteStatus], None] | None,
) -> SiteStatus:
    told: SiteStatus | None = None
    while True:
        found = status(site)
        if found.ready(wait_for):
            return found
        if on_wait is not None and found != told:
            told = found
            on_wait(found)
        late = [part for part in wait_for if not found.ready([part])]
        if found.parts.get("supervisor") != "up":
            raise InfraError(f"the supervisor of site {site.name} ended", hint=f"read {site.logs}, then run it again")
        if any(found.parts.get(part) == "failed" for part in late):
            raise InfraError(
                f"site {site.name}: {found.error}",
                hint=f"read {site.logs}; when it is mended: `orchestrate down`, then `orchestrate up`",
                details=found.to_json(),
            )
        if time.monotonic() > deadline:
            raise InfraError(
                f"site {site.name}: {', '.join(late)} not ready after {timeout_s:g} s: {found.error or 'still starting'}",
                hint=f"it goes on starting; read {site.logs}, or run it again with more time",
                details=found.to_json(),
            )
        time.sleep(_POLL_S)


@contextlib.contextmanager
def _locked(site: LocalSite) -> Generator[None]:
    """Hold the site's lock; the kernel frees it when we die."""
    private_folder(site.folder)
    deadline = time.monotonic() + _LOCK_S
    handle = -1
    try:
        while True:
            handle = os.open(site.lock_path, os.O_RDWR | os.O_CREAT, 0o600)
            if _take(handle, site.lock_path):
                break
            os.close(handle)
            handle = -1
            if time.monotonic() > deadline:
                raise Conflict(f"another `up` or `down` of site {site.name} runs", hint="wait for it, or end it")
            time.sleep(_POLL_S)
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _take(handle: int, path: Path) -> bool:
    """Lock the open file, and make sure that it is still the one at `path`: `down` removes it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(handle).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
