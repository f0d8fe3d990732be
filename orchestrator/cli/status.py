"""`orchestrate status`."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(epilog="Examples:  orchestrate status   |   orchestrate status xmiav0k3p7q2 --json")
def status(
    execution: Annotated[str | None, typer.Argument(metavar="[EXECUTION]", help="Show this one's steps.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Only executions of this recipe.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many executions to list.")] = 10,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Show the latest executions, or one execution with its steps and attempts."""
    from orchestrator.app import history
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json, print_table, say

    workplace = open_workplace(environment)
    with workplace.look_into_ledger() as ledger:
        if execution is not None:
            shown = history.execution(workplace, ledger, execution)
            if as_json:
                print_json(shown)
            else:
                _print_one(shown)
            return
        rows = history.executions(ledger, recipe, limit)
    if as_json:
        print_json({"executions": rows})
    else:
        columns = ("execution", "recipe", "state", "wall_s", "user")
        cells = [[_when(row["created_at"]), *(row[c] for c in columns)] for row in rows]
        print_table(["began", *columns], cells)
        if not cells:
            say(f"nothing has been run yet with the state in {workplace.state}")


def _print_one(shown: dict[str, Any]) -> None:
    from orchestrator.cli.output import print_table

    print(f"{shown['execution']}  {shown['recipe']}  {shown['state']}  began {_when(shown['created_at'])}")
    columns = ("step", "action", "state", "attempt", "wall_s", "reason")
    print_table(columns, [[step[c] if step[c] is not None else "" for c in columns] for step in shown["steps"]])
    for step in shown["steps"]:
        if step["error"]:
            print(f"\n{step['step']}: {step['error']['message']}")
            if step["error"].get("hint"):
                print(f"  fix: {step['error']['hint']}")


def _when(t: float) -> str:
    return datetime.datetime.fromtimestamp(t).astimezone().strftime("%Y-%m-%d %H:%M:%S")
