"""`orchestrate rollback`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(
    epilog="Examples:  orchestrate rollback --endpoint digits   |   "
    "orchestrate rollback --endpoint digits --to 3 --reason 'slow answers' --json"
)
def rollback(
    endpoint: Annotated[str, typer.Option("--endpoint", help="Name that clients call.")],
    to: Annotated[
        int | None,
        typer.Option("--to", min=1, help="Generation whose bundle shall serve again; the one before if absent."),
    ] = None,
    expect: Annotated[
        int | None, typer.Option("--expect", min=1, help="Generation that is live now; refuse (exit 4) else.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; history and audit keep it.")] = "",
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Let an earlier generation serve again, at once: a new generation with its bundle. Ends a rollout that is under way."""
    from orchestrator.app.rollouts import RollbackAsk, rollback
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.progress import teller

    workplace = open_workplace(environment)
    asked = RollbackAsk(endpoint=endpoint, to=to, expect=expect, reason=reason)
    done = rollback(workplace, asked, teller(as_json=as_json))
    from orchestrator.app.rollout_projection import start
    from orchestrator.cli.output import print_json

    start(workplace)
    if as_json:
        print_json({"event": "result", **done})
    elif not done["changed"]:
        print(f"generation {done['generation']} of {endpoint} serves bundle {done['bundle']} already")
    elif done["generation"] == done["to"]:
        print(f"generation {done['aborted']} of {endpoint} was taken back; generation {done['to']} has all requests")
    else:
        print(
            f"generation {done['generation']} of {endpoint} is live with the bundle of generation {done['to']} "
            f"(before: {done['was']})"
        )
        print(f"  bundle    {done['bundle']}")
