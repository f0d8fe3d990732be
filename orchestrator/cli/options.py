"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def new_app() -> typer.Typer:
    """Return the shell of a verb: plain help, and errors go up to `main`."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


Environment = Annotated[
    Path | None,
    typer.Option(
        "--environment",
        "-e",
        envvar="ORCHESTRATE_ENVIRONMENT",
        help="Environment file; the embedded local one (configs/local.yaml) when not given.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines; long verbs print NDJSON, result last.")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's YAML file.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a value, e.g. params.epochs=3; repeatable.")
]
Refresh = Annotated[
    list[str], typer.Option("--refresh", metavar="STEP", help="Run this step although its result is there; repeatable.")
]
