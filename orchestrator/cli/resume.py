"""`orchestrate resume`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.execute import execute
from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(epilog="Example:  orchestrate resume xmiav0k3p7q2")
def resume(
    execution: Annotated[str, typer.Argument(metavar="EXECUTION", help="Its id; see `orchestrate status`.")],
    environment: Environment = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Exit 4 if this recipe is running already.")] = False,
    as_json: Json = False,
) -> None:
    """Go on with an execution that failed, was stopped or was cancelled; finished steps stay finished."""
    from orchestrator.app.run import resume_request

    execute(resume_request(execution, environment, no_wait=no_wait), as_json=as_json)
