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

    loaded = load_recipe(recipe, set_=set_)
    check_against(loaded, load_environment(environment))
    if as_json:
        print_json({"valid": True, "recipe": loaded.recipe.name})
    else:
        print(f"{recipe}: valid")
