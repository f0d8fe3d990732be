"""The site's router processes. Router 0 leads; the others share its ports and its table. One that ends or hangs begins anew."""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from orchestrator.cluster.parts import Child
from orchestrator.cluster.pulse import Pulse
from orchestrator.cluster.ray_head import clean_environment
from orchestrator.cluster.serve_config import admin_socket, link_socket
from orchestrator.cluster.site import LocalSite, PartState
from orchestrator.core.errors import InfraError
from orchestrator.core.files import private_folder, write_json

_log: Final = logging.getLogger("orchestrator.cluster.supervisor")
_TABLE: Final = "table.json"
SILENT_S: Final = 15.0
"""A router whose event loop has been stuck for this long will not come back."""


class RouterChild(Child):
    """A router: public ports as the environment says, admin and link on Unix sockets. It keeps its ports and its table itself.

    Args:
        number: 0 leads.
        lead: Router 0, for the others: they start once it has its ports.
    """

    def __init__(self, site: LocalSite, number: int = 0, lead: RouterChild | None = None) -> None:
        super().__init__(site, f"router-{number}" if number else "router")
        self._number = number
        self._lead = lead
        self._told: tuple[str, str] | None = None
        self._pulse = Pulse(admin_socket(site, number))
        self.url = self.grpc = ""

    @property
    def _folder(self) -> Path:
        return self.site.folder / self.name

    def tick(self) -> None:
        """As every child; one that follows a leader also begins anew when the leader had to take other ports."""
        lead = self._lead
        if lead is not None:
            if not lead.url:
                return
            if self._process is not None and self._told != (lead.url, lead.grpc):
                self._process.terminate()
        super().tick()
        if self._process is None or self.state != "up":
            self._pulse.forget()
        elif self._pulse.silent_s(time.monotonic()) > SILENT_S:
            _log.warning("%s has not answered for %g s and is ended", self.name, SILENT_S)
            self._process.kill()

    def start(self) -> None:
        """Start it; port 0 means the port of last time where that is free."""
        private_folder(self._folder)
        config = self.site.folder / f"{self.name}.json"
        settings = {**self.site.serving.router_json(), "state": str(self._folder), "router": self._number}
        settings |= {"admin": admin_socket(self.site, self._number), "link": link_socket(self.site, self._number)}
        if self.site.serving.link_port:
            settings["link_port"] = self.site.serving.link_port + self._number
        others = range(1, self.site.serving.routers)
        if self._lead is not None:
            self._told = (self._lead.url, self._lead.grpc)
            ports = [int(place.rpartition(":")[2] or -1) for place in self._told]
            settings |= {"port": ports[0], "grpc_port": ports[1], "lead_table": str(self._lead.table)}
            settings.pop("metrics_port", None)  # the leader's speaks for all
        elif others:
            settings["peers"] = [admin_socket(self.site, number) for number in others]
            if not self.url:
                _check_free(self.site)
        write_json(config, settings, mode=0o600)
        command = [sys.executable, "-P", "-m", "orchestrator.serving.router.process", "--config", str(config)]
        self.spawn(command, clean_environment(self.site))

    @property
    def table(self) -> Path:
        """Where it keeps the routing table."""
        return self._folder / _TABLE

    def is_ready(self) -> bool:
        """It listens when it has written down where."""
        try:
            told = json.loads((self._folder / "router.json").read_bytes())
        except (OSError, ValueError):
            return False
        if self.identity is None or told.get("pid") != self.identity.pid:
            return False
        self.url, self.grpc = str(told["url"]), str(told.get("grpc", ""))
        return True


def make_routers(site: LocalSite) -> Sequence[RouterChild]:
    """Return the site's routers, the leading one first."""
    lead = RouterChild(site)
    return (lead, *(RouterChild(site, number, lead) for number in range(1, site.serving.routers)))


def routers_state(routers: Sequence[RouterChild]) -> PartState:
    """Return the leader's state, or where it is up that of the first that is not."""
    found: list[PartState] = [router.state for router in routers if router.state != "up"]
    return found[0] if found else "up"


def _check_free(site: LocalSite) -> None:
    """Routers share their port with whoever of the same user asks for that; nobody else must have it before they start."""
    serving = site.serving
    for port in (serving.port, serving.grpc_port):
        if port > 0:
            with socket.socket(socket.AF_INET6 if ":" in serving.host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((serving.host, port))
                except OSError as error:
                    raise InfraError(
                        f"cannot listen on {serving.host}:{port}: {error.strerror}",
                        hint="choose another port in the site's `serving`",
                    ) from error
