"""What is served: the ledger says what should be, the router says what is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.core.errors import Unreachable
from orchestrator.ledger import Generation, GenerationState, Ledger
from orchestrator.rollout.readiness import counters
from orchestrator.rollout.site import Site

EndpointState = Literal["ready", "not ready", "down", "none"]


@dataclass(frozen=True, slots=True)
class EndpointView:
    """One endpoint, for people.

    Attributes:
        generation: The live generation; 0 = none.
        state: `ready` and `not ready` are the router's word, `down` means that it does not answer, `none` that
            nothing is live.
        staged: The generation that is being rolled out; 0 = none.
    """

    endpoint: str
    url: str
    generation: int
    bundle: str
    device: str
    site: str
    pool: str
    state: EndpointState
    staged: int


def list_endpoints(ledger: Ledger, sites: Mapping[str, Site]) -> tuple[EndpointView, ...]:
    """Return every endpoint that the ledger knows.

    Args:
        ledger: The serve sites' ledger.
        sites: The sites that are up, by name; endpoints of others are `down`.
    """
    statuses = {name: status for name, site in sites.items() if (status := _status(site)) is not None}
    return tuple(_view(ledger.generations.list(name), sites, statuses) for name in ledger.generations.endpoints())


def _view(
    generations: tuple[Generation, ...], sites: Mapping[str, Site], statuses: Mapping[str, Mapping[str, Any]]
) -> EndpointView:
    live = next((g for g in generations if g.state == GenerationState.LIVE), None)
    staged = next((g.number for g in generations if g.state == GenerationState.STAGED), 0)
    shown = live or generations[-1]
    site = sites.get(shown.site)
    return EndpointView(
        endpoint=shown.endpoint,
        url=f"{site.url}/v2/models/{shown.endpoint}" if site else "",
        generation=live.number if live else 0,
        bundle=live.bundle if live else "",
        device=shown.device,
        site=shown.site,
        pool=shown.pool,
        state=_state(live, statuses.get(shown.site)),
        staged=staged,
    )


def _state(live: Generation | None, status: Mapping[str, Any] | None) -> EndpointState:
    if live is None:
        return "none"
    if status is None:
        return "down"
    return "ready" if counters(status, live).get("ready", 0) else "not ready"


def _status(site: Site) -> Mapping[str, Any] | None:
    try:
        return site.status()
    except Unreachable:
        return None
