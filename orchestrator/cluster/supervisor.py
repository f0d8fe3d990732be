"""The process that keeps a local site alive: `python -m orchestrator.cluster.supervisor SITE.json`.

It leads a session of its own, outlives the command that started it, writes the site's record, and ends when its folder
is gone. It stops nothing orderly when it is told to end: `down` ends all processes of the site by identity.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Final, cast

from orchestrator.cluster.autoscaler import Autoscaler
from orchestrator.cluster.devices import pool_device
from orchestrator.cluster.parts import Applications, Child, RayChild
from orchestrator.cluster.pool import LocalPool
from orchestrator.cluster.routers import make_routers, routers_state
from orchestrator.cluster.serve_config import admin_socket
from orchestrator.cluster.serving import LocalServing
from orchestrator.cluster.site import LocalSite, PartState, PoolStatus, SiteRecord, SiteStatus
from orchestrator.cluster.sweep import end_children
from orchestrator.core import faults
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.processes import ProcessIdentity
from orchestrator.core.redact import RedactingFilter
from orchestrator.serving.admin import RouterAdmin

_log = logging.getLogger("orchestrator.cluster.supervisor")
_QUICK_S: Final = 0.05
_STEADY_S: Final = 0.5
"""How long a dead part may go unnoticed."""


class Supervisor:
    """Owns the parts of one site and the record that says how they are."""

    def __init__(self, site: LocalSite) -> None:
        self._site = site
        self._routers = make_routers(site)
        self._router = self._routers[0]
        self._ray = RayChild(site, self._routers)
        self._applications = Applications(site, self._ray)
        self._autoscaler = Autoscaler(site, self._ray, self._applications)
        self._agents: dict[str, int] = dict.fromkeys(site.pools, 0)
        self._were_ready = False
        self._written: SiteRecord | None = None
        self._stop = threading.Event()
        # One client for life: making one costs 20 ms of CPU, and we ask many times.
        self._admin = RouterAdmin(Path(admin_socket(site)), timeout_s=1.0)

    def run(self) -> None:
        """Watch until told to end, or until the site's folder is gone."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A lock on the folder keeps systemd-tmpfiles from clearing sockets that have grown old.
        hold = os.open(self._site.runtime, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(hold, fcntl.LOCK_SH)
        self._publish()
        faults.point("supervisor.recorded")
        self._autoscaler.start()
        while not self._stop.is_set():
            for part in (*self._routers, self._ray):
                self._tick(part)
            self._applications.tick()
            self._count_agents()
            if not self._site.token_path.exists():
                _log.warning("%s is gone: the site ends", self._site.folder)
                end_children(os.getsid(0), {os.getpid()})
                return
            self._publish()
            self._stop.wait(_STEADY_S if self._status().state == "up" else _QUICK_S)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def _tick(self, part: Child) -> None:
        try:
            part.tick()
        except (OSError, OrchestratorError) as error:
            part.error = f"{part.name}: {error}"
            part.state = "failed"
            _log.error("%s", part.error)

    def _count_agents(self) -> None:
        if not self._site.pools or self._router.state != "up":
            return
        try:
            agents = cast("list[dict[str, Any]]", self._admin.status()["agents"])
        except OrchestratorError as error:
            _log.warning("router: %s", error)
            return
        self._agents = {name: sum(row["pool"] == name for row in agents) for name in self._site.pools}

    def _agents_state(self) -> PartState:
        if not self._site.pools:
            return "none"
        if all(self._agents[name] >= pool.least_slots for name, pool in self._site.pools.items()):
            self._were_ready = True
            return "up" if self._router.state == "up" else "restarting"
        if self._applications.state == "failed":
            return "failed"
        return "restarting" if self._were_ready else "starting"

    def _status(self) -> SiteStatus:
        parts: dict[str, PartState] = {
            "supervisor": "up",
            "ray": self._ray.state,
            "router": routers_state(self._routers),
            "serve": self._applications.state,
            "agents": self._agents_state(),
        }
        pools = {
            name: PoolStatus(pool.slots, pool_device(pool), self._agents[name])
            for name, pool in self._site.pools.items()
        }
        errors = (*(router.error for router in self._routers), self._ray.error, self._applications.error)
        return SiteStatus(
            name=self._site.name,
            state="up" if set(parts.values()) <= {"up", "none"} else "starting",
            ray_address=self._ray.address,
            dashboard_url=self._ray.dashboard_url,
            router_url=self._router.url,
            router_grpc=self._router.grpc,
            router_admin=admin_socket(self._site),
            ray_token_path=str(self._site.token_path),
            pools=pools,
            parts=parts,
            error="; ".join(error for error in errors if error),
            logs=str(self._site.logs),
        )

    def _publish(self) -> None:
        found = {"supervisor": ProcessIdentity.own()}
        found |= {part.name: part.identity for part in (self._ray, *self._routers)}
        processes = {name: identity for name, identity in found.items() if identity is not None}
        wanted, serving = self._site.pools_json(), asdict(self._site.serving)
        record = SiteRecord(self._site.id, self._status(), wanted, processes, serving)
        if record != self._written:
            record.write(self._site.record_path)
            self._written = record
            _log.info("parts %s", dict(record.status.parts))


def read_site(path: Path) -> LocalSite:
    """Read the settings that `up` wrote for us."""
    data = json.loads(path.read_bytes())
    pools = {name: LocalPool.from_json(pool) for name, pool in data["pools"].items()}
    serving = LocalServing(**data["serving"])
    return LocalSite(
        data["name"], Path(data["state"]), pools, data.get("tools") or {}, serving, int(data.get("npus", 0))
    )


def main(argv: list[str] | None = None) -> int:
    """Run the supervisor; returns the exit code."""
    parser = argparse.ArgumentParser(prog="orchestrator.cluster.supervisor")
    parser.add_argument("settings", type=Path)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger().handlers[0].addFilter(RedactingFilter())
    Supervisor(read_site(args.settings)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
