"""The site behind a router: its admin socket, and its public URL as a client would use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.rollout.site import Answer, Tensors
from orchestrator.serving.admin import RouterAdmin
from orchestrator.serving.client import OipClient
from orchestrator.serving.table import RoutingTable


@dataclass(frozen=True, slots=True)
class RouterSite:
    """The site behind a router: its admin socket and its public URL."""

    name: str
    url: str
    admin: RouterAdmin
    client: OipClient

    @classmethod
    def connect(cls, name: str, url: str, admin_socket: Path) -> RouterSite:
        """Describe the site; nothing is sent yet."""
        return cls(name, url, RouterAdmin(admin_socket), OipClient(url))

    def put_table(self, table: RoutingTable) -> None:
        """Publish a routing table."""
        self.admin.put_table(table)

    def status(self) -> Mapping[str, Any]:
        """Return the router's view."""
        return self.admin.status()

    def infer(self, endpoint: str, generation: int, inputs: Tensors) -> Answer:
        """Ask one generation."""
        return self.client.infer(endpoint, inputs, generation=generation, probe=True)
