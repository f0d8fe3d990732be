"""The whole desired state of Ray Serve on a site: one application per pool. We are its only writer."""

from __future__ import annotations

from typing import Any, Final

from orchestrator.cluster.devices import pool_device, pool_resource, pool_share
from orchestrator.cluster.site import LocalSite

DEPLOYMENT: Final = "PoolAgent"
"""Serve's name of the agents of a pool: that of their class."""


def serve_document(site: LocalSite) -> dict[str, Any]:
    """Return the body for `PUT /api/serve/applications/`; applications that are left out are deleted by Ray."""
    return {"proxy_location": "Disabled", "applications": [_application(site, name) for name in sorted(site.pools)]}


def _application(site: LocalSite, name: str) -> dict[str, Any]:
    pool = site.pools[name]
    return {
        "name": name,
        "route_prefix": None,
        "import_path": "orchestrator.serving.agent.in_ray:app",
        "external_scaler_enabled": pool.scale is not None,
        "args": {
            "pool": name,
            "link": link_socket(site),
            "links": [link_socket(site, number) for number in range(1, site.serving.routers)],
            "state": str(site.folder / "agents" / name),
            "device": pool_device(pool),
            "slots": pool.slots,
            "socs": {str(slot): soc for slot, soc in enumerate(pool.socs) if soc},
            "models": pool.models,
            "memory_bytes": pool.memory_bytes,
            "tools": dict(site.tools),
            "resource": pool_resource(name, pool),
            "share": pool_share(pool),
            "start": pool.least_slots,
        },
    }


def link_socket(site: LocalSite, router: int = 0) -> str:
    """Return the Unix socket of a router that replicas dial; agents dial that of router 0 alone."""
    return str(site.runtime / (f"link-{router}.sock" if router else "link.sock"))


def admin_socket(site: LocalSite, router: int = 0) -> str:
    """Return the Unix socket of a router's admin interface; router 0 speaks for all."""
    return str(site.runtime / (f"admin-{router}.sock" if router else "admin.sock"))
