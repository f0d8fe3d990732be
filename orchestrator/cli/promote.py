"""`orchestrate promote`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(
    epilog="Examples:  orchestrate promote digits@candidate --endpoint digits --pool edge   |   "
    "orchestrate promote digits/3 --endpoint digits --pool edge --recipe recipe.yaml   |   "
    "orchestrate promote sha256:… --endpoint digits --pool edge --expect 4 --json"
)
def promote(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="MODEL (its newest version), MODEL@alias, MODEL/version, or a bundle's sha256 digest."
        ),
    ],
    endpoint: Annotated[str, typer.Option("--endpoint", help="Name that clients call.")],
    pool: Annotated[str, typer.Option("--pool", help="Pool of the environment that serves it.")],
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="Whose `rollout` says how; as the endpoint's last rollout if absent."),
    ] = None,
    expect: Annotated[
        int | None, typer.Option("--expect", min=0, help="Generation that is live now, 0 = none; refuse (exit 4) else.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; history and audit keep it.")] = "",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Exit 4 if the endpoint is being rolled out already.")
    ] = False,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Roll a model that is registered or packed already out to an endpoint; ends when it is live. Repeat it to go on."""
    from orchestrator.app.promotion import PromoteAsk, promote
    from orchestrator.app.rollout_projection import start
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json
    from orchestrator.cli.progress import teller, waiting

    workplace = open_workplace(environment)
    asked = PromoteAsk(
        model=model, endpoint=endpoint, pool=pool, recipe=recipe, expect=expect, no_wait=no_wait, reason=reason
    )
    tell = teller(as_json=as_json)
    start(workplace)
    done = promote(workplace, asked, tell, waiting(tell))
    if as_json:
        print_json({"event": "result", **done})
        return
    _print(done)


def _print(done: dict[str, Any]) -> None:
    before = f" (before: {done['previous']})" if done["previous"] else ""
    print(f"generation {done['generation']} of {done['endpoint']} is live{before}")
    print(f"  bundle    {done['bundle']}")
    print(f"  device    {done['device']}")
    print(f"  answers   {done['url']}")
    print(f"  history   orchestrate rollout history --endpoint {done['endpoint']}")
    print(f"  back      orchestrate rollback --endpoint {done['endpoint']}")
