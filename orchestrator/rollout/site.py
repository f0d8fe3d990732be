"""What a rollout needs of a serve site, and the site behind a router of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.serving.admin import RouterAdmin
from orchestrator.serving.table import RoutingTable

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.serving.client import OipClient

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

    def evidence(self, endpoint: str) -> Mapping[str, Any]:
        """Return what the routers have counted of a split endpoint (`RouterAdmin.evidence`)."""
        ...

    def infer(self, endpoint: str, generation: int, inputs: Tensors) -> Answer:
        """Ask one generation, past the weights; counted as a probe, not as traffic."""
        ...


class RouterSite:
    """The site behind a router: its admin socket and its public URL.

    Attributes:
        name: Of the site.
        url: Where clients call it.
    """

    def __init__(self, name: str, url: str, admin_socket: Path) -> None:
        self.name = name
        self.url = url
        self.admin = RouterAdmin(admin_socket)
        self._socket = admin_socket

    @classmethod
    def connect(cls, name: str, url: str, admin_socket: Path) -> RouterSite:
        """Describe the site; nothing is sent yet."""
        return cls(name, url, admin_socket)

    @cached_property
    def client(self) -> OipClient:
        """What asks the models; made when it is needed, since a rollback needs none of it and must be quick."""
        from orchestrator.serving.client import OipClient

        return OipClient(self.url, socket=self._socket)

    def put_table(self, table: RoutingTable) -> None:
        """Publish a routing table."""
        self.admin.put_table(table)

    def status(self) -> Mapping[str, Any]:
        """Return the router's view."""
        return self.admin.status()

    def evidence(self, endpoint: str) -> Mapping[str, Any]:
        """Return what the routers have counted."""
        return self.admin.evidence(endpoint)

    def infer(self, endpoint: str, generation: int, inputs: Tensors) -> Answer:
        """Ask one generation."""
        return self.client.infer(endpoint, inputs, generation=generation, probe=True)
