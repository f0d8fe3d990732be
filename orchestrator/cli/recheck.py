"""`orchestrate recheck`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from orchestrator.cli.options import Environment, Json, RecipePath, Set, new_app

if TYPE_CHECKING:
    from orchestrator.app.recheck import Rechecked

_EXACT_DB: Final = 400.0
"""How the metrics write the SQNR of identical outputs."""

app = new_app()


@app.command(
    epilog="Examples:  orchestrate recheck recipe.yaml --set targets.0.parity.min_sqnr_db=60   |   "
    "orchestrate recheck recipe.yaml --policy strict.yaml --json"
)
def recheck(
    recipe: RecipePath,
    policy: Annotated[
        Path | None, typer.Option(help="YAML `{policy: 1, targets: {NAME: {min_sqnr_db: 60}}}` instead.")
    ] = None,
    execution: Annotated[str | None, typer.Option(help="Judge this execution; the newest with measurements.")] = None,
    environment: Environment = None,
    set_: Set = [],  # noqa: B006  typer copies the default
    as_json: Json = False,
) -> None:
    """Judge the stored parity measurements again, by the limits of the recipe as it is now. Runs nothing.

    Exit code 1 when a limit is missed.
    """
    from orchestrator.app.recheck import recheck as take_again
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json
    from orchestrator.recipe import load_recipe
    from orchestrator.recipe.policy import load_policy

    loaded = load_recipe(recipe, set_=set_)
    limits = load_policy(policy) if policy is not None else None
    found = take_again(open_workplace(environment), loaded.recipe, limits, execution)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    if not found.passed:
        raise typer.Exit(1)


def _print(found: Rechecked) -> None:
    from orchestrator.cli.output import print_table, say

    rows = [
        [
            link["link"],
            link["device"],
            _decibels(link["worst_sqnr_db"]),
            f"{link['min_sqnr_db']:g} dB",
            "not run" if link["passed"] is None else "passed" if link["passed"] else "MISSED",
        ]
        for link in found.to_json()["links"]
    ]
    say(f"{found.recipe}: {found.samples} samples of execution {found.execution}")
    print_table(["link", "computed on", "worst", "asked", "verdict"], rows)
    for miss in found.misses:
        say(f"missed: {miss}")


def _decibels(value: float | None) -> str:
    if value is None:
        return "-"
    return "identical" if value >= _EXACT_DB else f"{value:.1f} dB"
