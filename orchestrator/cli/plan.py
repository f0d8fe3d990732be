"""`orchestrate plan`."""

from __future__ import annotations

from orchestrator.cli.options import Environment, Json, RecipePath, Refresh, Set, new_app

app = new_app()


@app.command(epilog="Example:  orchestrate plan recipes/digits/recipe.yaml --set params.epochs=3")
def plan(
    recipe: RecipePath,
    environment: Environment = None,
    set_: Set = [],  # noqa: B006  typer copies the default
    refresh: Refresh = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Say what `run` would do, step by step, and why. Changes nothing."""
    from orchestrator.app.prepare import prepare
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.display import plan_lines
    from orchestrator.cli.output import print_json

    workplace = open_workplace(environment)
    prepared = prepare(workplace, recipe, set_)
    with workplace.look_into_ledger() as ledger:
        made = prepared.plan(ledger, refresh)
    if as_json:
        print_json(made.to_json())
    else:
        print(f"{made.recipe}: {'nothing to do' if made.all_reused else 'to do'}")
        print("\n".join(plan_lines(made)))
