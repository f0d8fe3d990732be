"""`orchestrate validate`."""

from __future__ import annotations

from orchestrator.cli.options import Environment, Json, RecipePath, Set, new_app

app = new_app()


@app.command(epilog="Example:  orchestrate validate recipes/digits/recipe.yaml")
def validate(
    recipe: RecipePath,
    environment: Environment = None,
    set_: Set = [],  # noqa: B006  typer copies the default
    as_json: Json = False,
) -> None:
    """Check a recipe and its environment: every problem with file, line and column. Runs nothing."""
    from orchestrator.cli.output import print_json
    from orchestrator.environment import check_against, load_environment
    from orchestrator.recipe import load_recipe
    from orchestrator.rollout.strategy import resolve
    from orchestrator.rollout.strategy_text import strategy_text

    loaded, found = load_recipe(recipe, set_=set_), load_environment(environment)
    check_against(loaded, found)
    rollout = loaded.recipe.rollout
    strategy = resolve(rollout, found.pools[rollout.pool].rollout) if rollout is not None else None
    if as_json:
        told = {} if strategy is None else {"strategy": strategy.to_json()}
        print_json({"valid": True, "recipe": loaded.recipe.name, **told})
    else:
        print(f"{recipe}: valid")
        if strategy is not None and strategy.steps:
            print(f"  rollout: {strategy_text(strategy)}")
