"""`orchestrate logs`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(
    epilog="Examples:  orchestrate logs -f   |   orchestrate logs --step train   |   orchestrate logs xmiav0k3p7q2"
)
def logs(
    execution: Annotated[str | None, typer.Argument(metavar="[EXECUTION]", help="The latest when not given.")] = None,
    step: Annotated[str | None, typer.Option(help="Only this step.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the execution ends.")] = False,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Print what steps printed."""
    from orchestrator.app import history
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json

    workplace = open_workplace(environment)
    with workplace.open_ledger() as ledger:
        found = history.find_execution(ledger, execution).id

        def going() -> bool:
            return follow and ledger.executions.get(found).state == "running"

        last = ""
        for name, text in history.follow(lambda: history.log_files(workplace, found, step), going):
            if as_json:
                print_json({"log": name, "text": text})
                continue
            if name != last:
                sys.stdout.write(f"── {name} ──\n")
                last = name
            sys.stdout.write(text if text.endswith("\n") else text + "\n")
            sys.stdout.flush()
