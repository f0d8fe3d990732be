"""`orchestrate down`."""

from __future__ import annotations

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(epilog="Example:  orchestrate down")
def down(environment: Environment = None, as_json: Json = False) -> None:
    """Take the local site down: no process, port or lock stays. Ledger, store and MLflow data do."""
    from orchestrator.app.serve_site import take_down
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json

    name = take_down(open_workplace(environment))
    if as_json:
        print_json({"site": name, "state": "down"})
    else:
        print(f"site {name}: down")
