"""`up`, `down`, `site status`: the local site, and making it serve again what the ledger says is live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.app.wiring import Workplace
from orchestrator.cluster.site import status
from orchestrator.core.errors import Unreachable
from orchestrator.rollout.reconcile import publish
from orchestrator.rollout.site import RouterSite


def bring_up(workplace: Workplace, site: str = "") -> dict[str, Any]:
    """Bring the site up whole, with what was live; returns its status."""
    from orchestrator.cluster.local import up

    settings = workplace.site(site)
    up(settings)
    restore(workplace, site)
    return status(settings).to_json()


def take_down(workplace: Workplace, site: str = "") -> str:
    """Take the site down and return its name."""
    from orchestrator.cluster.local import down

    settings = workplace.site(site)
    down(settings)
    return settings.name


def site_status(workplace: Workplace, site: str = "") -> dict[str, Any]:
    """Return what runs."""
    return status(workplace.site(site)).to_json()


def restore(workplace: Workplace, site: str = "") -> None:
    """Publish the ledger's generations to the router, which may have been away; nothing happens where none is live."""
    settings = workplace.site(site)
    with workplace.open_ledger() as ledger:
        if any(ledger.generations.live(endpoint) for endpoint in ledger.generations.endpoints()):
            publish(ledger, connect(workplace, settings.name))


def connect(workplace: Workplace, site: str) -> RouterSite:
    """Return the site's router.

    Raises:
        Unreachable: The site is down.
    """
    found = status(workplace.site(site))
    if not found.router_url:
        raise Unreachable(f"site {found.name!r} is {found.state}", hint="orchestrate up")
    return RouterSite.connect(found.name, found.router_url, Path(found.router_admin))
