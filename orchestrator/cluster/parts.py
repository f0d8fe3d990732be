"""The parts that a supervisor keeps alive: what all have in common, the Ray head, and the Serve applications on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.cluster.ports import RayPorts, pick_ports
from orchestrator.cluster.ray_head import READY_FILE, head_command, head_environment, ray_folder
from orchestrator.cluster.ray_rest import RayRest, TokenRefused
from orchestrator.cluster.serve_config import serve_document
from orchestrator.cluster.site import LocalSite, PartState
from orchestrator.cluster.sweep import end_children
from orchestrator.core.errors import OrchestratorError, Unreachable
from orchestrator.core.processes import ProcessIdentity

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0
_STEADY_S: Final = 30.0
"""A part that ran this long is forgiven its earlier ends."""
_FAILED_AFTER: Final = 3
"""Ends in a row, before it ever came up, after which `up` stops waiting."""
_LOG_KEEP_BYTES: Final = 8 * 2**20
_TAIL_BYTES: Final = 1500


class Child(ABC):
    """One supervised process: started, watched, and started again with growing pauses."""

    def __init__(self, site: LocalSite, name: str) -> None:
        self.site = site
        self.name = name
        self.state: PartState = "starting"
        self.error = ""
        self.identity: ProcessIdentity | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ends = 0
        self._started = 0.0
        self._next_start = 0.0

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.site.logs / f"{self.name}.log"

    def tick(self) -> None:
        """Look once: start it, see that it is ready, or note that it ended."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._next_start:
                self._started = now
                self.start()
        elif (code := self._process.poll()) is not None:
            self._note_end(code, now)
        elif self.state != "up" and self.is_ready():
            self.state = "up"
            self.error = ""
        elif self.state == "up" and now - self._started > _STEADY_S:
            self._ends = 0

    @abstractmethod
    def start(self) -> None:
        """Start the process."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Tell whether the running process does its work."""

    def clean_up(self) -> None:  # noqa: B027  most have nothing to clean up
        """Called when the process has ended, before it is started again."""

    def spawn(self, command: list[str], env: dict[str, str]) -> None:
        """Start `command` in our session, its output going to the log."""
        rotate(self.log)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=self.site.runtime
            )
        self.identity = ProcessIdentity.of(self._process.pid)

    def _note_end(self, code: int, now: float) -> None:
        self._process = None
        self.identity = None
        self._ends += 1
        self.error = f"{self.name} ended with code {code}; {self.log}: {tail(self.log)}"
        never_up = self.state in {"starting", "failed"}
        self.state = "failed" if never_up and self._ends >= _FAILED_AFTER else "starting" if never_up else "restarting"
        self._next_start = now + min(_FIRST_PAUSE_S * 2 ** (self._ends - 1), _LONGEST_PAUSE_S)
        self.clean_up()


class RayChild(Child):
    """The Ray head. When it ends, what is left of it is ended too, and all of it starts anew on fresh ports."""

    def __init__(self, site: LocalSite, spare: Sequence[Child]) -> None:
        super().__init__(site, "ray")
        self._spare = spare
        self.ports: RayPorts | None = None

    @property
    def address(self) -> str:
        """`host:port` of the GCS."""
        return f"127.0.0.1:{self.ports.gcs}" if self.ports else ""

    @property
    def dashboard_url(self) -> str:
        """URL of the dashboard, which is also the REST API."""
        return f"http://127.0.0.1:{self.ports.dashboard}" if self.ports else ""

    def start(self) -> None:
        """Start it in an empty temp folder."""
        shutil.rmtree(ray_folder(self.site), ignore_errors=True)
        # One port a worker: each CPU may run one, and actors that reserve no CPU come on top.
        self.ports = pick_ports(64 + 2 * (os.cpu_count() or 1))
        self.spawn(head_command(self.site, self.ports), head_environment(self.site, self.ports))

    def is_ready(self) -> bool:
        """`ray start` writes the address file last."""
        return (ray_folder(self.site) / READY_FILE).exists()

    def clean_up(self) -> None:
        """A dead head leaves daemons and workers behind; nothing of them can be used again."""
        spare = {part.identity.pid for part in self._spare if part.identity is not None}
        end_children(os.getsid(0), {os.getpid(), *spare})


class Applications:
    """Brings the Serve applications up, in a thread: its calls take seconds, and the router must be watched meanwhile."""

    _RETRY_S: Final = 0.2
    _POLL_S: Final = 0.2
    _CALL_S: Final = 60.0

    def __init__(self, site: LocalSite, ray: RayChild) -> None:
        self._site = site
        self._ray = ray
        self._thread: threading.Thread | None = None
        self._head: ProcessIdentity | None = None
        self.state: PartState = "starting" if site.pools else "none"
        self.error = ""

    def tick(self) -> None:
        """Start anew for each new Ray head. The dashboard answers before the head is ready, and that is early enough."""
        if not self._site.pools or self._ray.identity is None or self._ray.identity == self._head:
            return
        if self._thread is not None and self._thread.is_alive():
            return
        if self._head is not None:
            self.state = "restarting"
        self._head = self._ray.identity
        self._thread = threading.Thread(target=self._run, args=(self._head, self._ray.dashboard_url), daemon=True)
        self._thread.start()

    def _run(self, head: ProcessIdentity, url: str) -> None:
        with RayRest(url, self._site.token_path) as rest:
            placed = False
            while head.alive():
                try:
                    if not placed:
                        rest.version(timeout_s=1)
                        rest.put_serve_applications(serve_document(self._site), timeout_s=self._CALL_S)
                        placed = True
                    if self._look(rest.serve_applications()):
                        return
                except TokenRefused as error:
                    self.state, self.error = "failed", str(error)
                    return
                except OrchestratorError as error:
                    # Before the head is up nobody answering is no news.
                    if self._ray.state == "up" or not isinstance(error, Unreachable):
                        self.error = error.message
                time.sleep(self._POLL_S if placed else self._RETRY_S)

    def _look(self, applications: dict[str, Any]) -> bool:
        rows = [cast("dict[str, Any]", applications.get(name) or {}) for name in self._site.pools]
        states = {str(row.get("status")) for row in rows}
        if states == {"RUNNING"}:
            self.state, self.error = "up", ""
            return True
        if "DEPLOY_FAILED" in states:
            self.state = "failed"
            self.error = "; ".join(str(row.get("message"))[-_TAIL_BYTES:] for row in rows if row.get("message"))
            return True
        return False


def rotate(log: Path) -> None:
    """Put a log that has grown large aside, keeping one old one."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _LOG_KEEP_BYTES:
            log.replace(log.with_suffix(".log.1"))


def tail(log: Path) -> str:
    """Return the end of a log, on one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return " | ".join(file.read().decode(errors="replace").splitlines()[-8:])
    except OSError:
        return "(no log)"
