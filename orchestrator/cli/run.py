"""`orchestrate run`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.execute import execute
from orchestrator.cli.options import Environment, Json, RecipePath, Refresh, Set, new_app

app = new_app()


@app.command(
    epilog="Examples:  orchestrate run recipes/digits/recipe.yaml   |   orchestrate run r.yaml --set params.epochs=3   |   "
    "orchestrate run r.yaml --refresh train --json"
)
def run(
    recipe: RecipePath,
    environment: Environment = None,
    set_: Set = [],  # noqa: B006  typer copies the default
    refresh: Refresh = [],  # noqa: B006
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Exit 4 if this recipe is running already.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: train, check, export, bundle, register, deploy. What is done already is reused."""
    from orchestrator.app.run import RunRequest

    execute(RunRequest(recipe, environment, set_, refresh, no_wait), as_json=as_json)
