"""`orchestrate up`."""

from __future__ import annotations

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(epilog="Example:  orchestrate up -e configs/local.yaml")
def up(environment: Environment = None, as_json: Json = False) -> None:
    """Bring the local site up: Ray, the pool's agents, the router; what was live is served again."""
    from orchestrator.app.serve_site import bring_up
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.site import show

    show(bring_up(open_workplace(environment)), as_json=as_json)
