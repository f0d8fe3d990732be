"""What a rollout needs of a serve site, and the site behind a router of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from orchestrator.serving.admin import RouterAdmin
from orchestrator.serving.client import OipClient
from orchestrator.serving.table import RoutingTable

Tensors = Mapping[str, np.ndarray[Any, Any]]


class Answer(Protocol):
    """What came back from a generation, and who it says it is."""

    @property
    def outputs(self) -> Tensors:
        """Output tensors by name."""
        ...

    @property
    def generation(self) -> int:
        """The generation that answered."""
        ...

    @property
    def bundle(self) -> str:
        """The digest of the bundle that answered."""
        ...

    @property
    def device(self) -> str:
        """The device that the answer came from."""
        ...


class Site(Protocol):
    """A serve site: one router in front of pools."""

    @property
    def name(self) -> str:
        """The site's name in the environment."""
        ...

    @property
    def url(self) -> str:
        """Where clients call it."""
        ...

    def put_table(self, table: RoutingTable) -> None:
        """Publish a routing table.

        Raises:
            Conflict: The router has a newer one.
            Unreachable: It did not answer; the table may have arrived.
        """
        ...

    def status(self) -> Mapping[str, Any]:
        """Return the router's view: generations, replicas, agents (`RouterAdmin.status`)."""
        ...

    def infer(self, endpoint: str, generation: int, inputs: Tensors) -> Answer:
        """Ask one generation, past the weights; counted as a probe, not as traffic."""
        ...


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
        return cls(name, url, RouterAdmin(admin_socket), OipClient(url, socket=admin_socket))

    def put_table(self, table: RoutingTable) -> None:
        """Publish a routing table."""
        self.admin.put_table(table)

    def status(self) -> Mapping[str, Any]:
        """Return the router's view."""
        return self.admin.status()

    def infer(self, endpoint: str, generation: int, inputs: Tensors) -> Answer:
        """Ask one generation."""
        return self.client.infer(endpoint, inputs, generation=generation, probe=True)
