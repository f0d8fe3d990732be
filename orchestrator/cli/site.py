"""`orchestrate site`."""

from __future__ import annotations

from typing import Any

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.callback(invoke_without_command=True, epilog="Examples:  orchestrate site status   |   orchestrate site --json")
def site(ctx: typer.Context, environment: Environment = None, as_json: Json = False) -> None:
    """Show what runs on a site."""
    if ctx.invoked_subcommand is None:
        status(environment, as_json)


@app.command(epilog="Example:  orchestrate site status --json")
def status(environment: Environment = None, as_json: Json = False) -> None:
    """Show a site's parts, addresses and pools."""
    from orchestrator.app.serve_site import site_status
    from orchestrator.app.wiring import open_workplace

    show(site_status(open_workplace(environment)), as_json=as_json)


def show(shown: dict[str, Any], *, as_json: bool) -> None:
    """Print a site."""
    from orchestrator.cli.output import print_json

    if as_json:
        print_json(shown)
        return
    print(f"site {shown['name']}: {shown['state']}")
    for part, state in shown["parts"].items():
        print(f"  {part:<12}{state}")
    shown_urls = (
        ("router", "router_url"),
        ("gRPC", "router_grpc"),
        ("admin", "router_admin"),
        ("dashboard", "dashboard_url"),
        ("ray", "ray_address"),
    )
    for label, key in shown_urls:
        if shown.get(key):
            print(f"  {label:<12}{shown[key]}")
    for name, pool in shown["pools"].items():
        facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in pool.items())
        print(f"  pool {name}: {facts}")
