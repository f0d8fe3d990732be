"""`orchestrate endpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.callback(
    invoke_without_command=True, epilog="Examples:  orchestrate endpoint list   |   orchestrate endpoint infer digits"
)
def endpoint(ctx: typer.Context, environment: Environment = None, as_json: Json = False) -> None:
    """List endpoints; send one a request."""
    if ctx.invoked_subcommand is None:
        list_(environment, as_json)


@app.command("list", epilog="Example:  orchestrate endpoint list --json")
def list_(environment: Environment = None, as_json: Json = False) -> None:
    """List endpoints: where they answer, with which generation of which bundle, on what device."""
    from orchestrator.app.endpoints import list_endpoints
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json, print_table, say
    from orchestrator.core.digests import short

    workplace = open_workplace(environment)
    rows = list_endpoints(workplace)
    if as_json:
        print_json({"endpoints": rows})
        return
    columns = ("endpoint", "state", "generation", "bundle", "device", "pool", "url")
    print_table(columns, [[short(r[c]) if c == "bundle" else r[c] for c in columns] for r in rows])
    if not rows:
        say(f"nothing has been deployed yet with the state in {workplace.state}")


@app.command(
    epilog="Examples:  orchestrate endpoint infer digits   |   orchestrate endpoint infer digits --input x.npz"
)
def infer(
    name: Annotated[str, typer.Argument(help="The endpoint.")],
    input_: Annotated[
        Path | None,
        typer.Option("--input", help="An .npz keyed by input name; the bundle's first golden sample if not given."),
    ] = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Send an endpoint one request and print the answer."""
    from orchestrator.app.endpoints import infer_once
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json

    answer = infer_once(open_workplace(environment), name, input_)
    if as_json:
        print_json(answer)
        return
    for output, value in answer["outputs"].items():
        print(f"{output}: {value}")
    print(
        f"generation {answer['generation']}, bundle {answer['bundle']}, device {answer['device']}, "
        f"{answer['latency_ms']:.2f} ms"
    )
