"""`orchestrate init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Json, new_app

app = new_app()


@app.command(epilog="Example:  orchestrate init mymodel && orchestrate run mymodel/recipe.yaml")
def init(
    folder: Annotated[Path, typer.Argument(help="New folder; its name becomes the recipe's.")],
    as_json: Json = False,
) -> None:
    """Write a small recipe that works as it is: a model, a training loop, gates, a target, an endpoint."""
    from orchestrator.app.init import write_recipe
    from orchestrator.cli.output import print_json

    written = write_recipe(folder)
    if as_json:
        print_json({"folder": str(folder), "files": [str(path) for path in written]})
        return
    for path in written:
        print(f"wrote {path}")
    print(f"next: orchestrate run {folder / 'recipe.yaml'}")
