"""`orchestrate cancel`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(epilog="Examples:  orchestrate cancel   |   orchestrate cancel xmiav0k3p7q2")
def cancel(
    execution: Annotated[str | None, typer.Argument(metavar="[EXECUTION]", help="The latest when not given.")] = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Stop an execution from any terminal. What it finished stays; `resume` goes on. A rollout that it leads stays as it is."""
    from orchestrator.app import history
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json
    from orchestrator.ledger.rows import user_name

    workplace = open_workplace(environment)
    with workplace.look_into_ledger() as ledger:
        found = history.find_execution(ledger, execution).id
        state = history.cancel(ledger, found, user_name())
        rollouts = history.left_under_way(ledger, found)
    if as_json:
        print_json({"execution": found, "state": state, "rollouts": rollouts})
        return
    print(f"{found}: {state}")
    for row in rollouts:
        print(
            f"generation {row['generation']} of {row['endpoint']} is still being rolled out, at {row['weight']} % "
            f"({row['state']})"
        )
        print(f"  go on         {row['watch']}")
        print(f"  take it back  {row['abort']}")
