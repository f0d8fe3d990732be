"""A policy file: limits by target that `recheck` judges by in place of the recipe's."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from orchestrator.core.errors import RecipeError
from orchestrator.recipe.fields import Model, Name, Version
from orchestrator.recipe.model import Parity
from orchestrator.recipe.problems import raise_problems
from orchestrator.recipe.validation import check
from orchestrator.recipe.yaml_text import read_document


class Policy(Model):
    """Limits on the numeric difference, by target."""

    policy: Version = Field(description="Version of this format: 1.")
    targets: dict[Name, Parity] = Field(description="Target's name -> its limits.", min_length=1)


def load_policy(path: Path) -> Policy:
    """Read and check a policy file.

    Raises:
        RecipeError: Anything wrong with it, placed as `file:line:column`.
    """
    policy, problems = check(read_document(path, RecipeError), Policy, {})
    if problems:
        raise_problems(problems, RecipeError)
    assert policy is not None
    return policy
