"""`orchestrate schema`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from orchestrator.cli.options import Json, new_app

app = new_app()


class File(StrEnum):
    """The two files a user writes."""

    RECIPE = "recipe"
    ENVIRONMENT = "environment"


@app.command(epilog="Example:  orchestrate schema recipe > recipe.schema.json")
def schema(
    file: Annotated[File, typer.Argument(help="Which file's schema.")] = File.RECIPE, as_json: Json = False
) -> None:
    """Print the JSON Schema that gives editors completion and checks."""
    from orchestrator.recipe.schema import recipe_schema

    if file is File.RECIPE:
        found = recipe_schema()
    else:
        from orchestrator.environment.schema import environment_schema

        found = environment_schema()
    print(json.dumps(found, indent=None if as_json else 2))
