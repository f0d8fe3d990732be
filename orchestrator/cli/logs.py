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
    from orchestrator.cli.output import print_json, say
    from orchestrator.core.errors import UsageError
    from orchestrator.core.redact import redact_text

    workplace = open_workplace(environment)
    with workplace.look_into_ledger() as ledger:
        found = history.find_execution(ledger, execution).id
        known = [row.name for row in ledger.executions.steps(found)]
        if step is not None and step not in known:
            raise UsageError(f"execution {found} has no step {step!r}", hint=f"have: {', '.join(known)}")

        def going() -> bool:
            return follow and history.going(ledger, found)

        if not as_json and not follow and not history.log_files(workplace, found, step):
            reused = "every step was reused" if step is None else f"step {step} printed nothing here"
            say(f"no logs in execution {found}: {reused}; `orchestrate status` lists earlier executions")
        last = ""
        for name, raw in history.follow(lambda: history.log_files(workplace, found, step), going):
            text = redact_text(raw)
            if as_json:
                print_json({"log": name, "text": text})
                continue
            if name != last:
                sys.stdout.write(f"── {name} ──\n")
                last = name
            sys.stdout.write(text)
            sys.stdout.flush()
