"""JSON Schema of the environment, for editors."""

from __future__ import annotations

from typing import Any

from orchestrator.environment.model import Environment
from orchestrator.recipe.schema import model_schema


def environment_schema() -> dict[str, Any]:
    """Return the schema of an environment."""
    return model_schema(Environment, "orchestrate environment")
