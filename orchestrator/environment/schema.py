"""JSON Schema of the environment, for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.environment.model import Environment
from orchestrator.recipe.schema import model_schema, recipe_schema, schema_text


def environment_schema() -> dict[str, Any]:
    """Return the schema of an environment."""
    return model_schema(Environment, "orchestrate environment")


def write_schemas(package: Path) -> None:
    """Write both checked-in schemas, below the folder of the package."""
    (package / "recipe" / "recipe.schema.json").write_text(schema_text(recipe_schema()))
    (package / "environment" / "environment.schema.json").write_text(schema_text(environment_schema()))


if __name__ == "__main__":
    write_schemas(Path(__file__).parents[1])
