"""What a rollout needs of a serve site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

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
