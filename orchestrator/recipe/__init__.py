"""YAML text -> Recipe, with the line and column of every mistake.

Names load on first use, so that importing this package (or `problems`, `source_files`, …) does not import pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.recipe.load import LoadedRecipe, load_recipe
    from orchestrator.recipe.model import Recipe
    from orchestrator.recipe.problems import render_problems

__all__ = ["LoadedRecipe", "Recipe", "load_recipe", "render_problems"]

_HOMES = {"LoadedRecipe": "load", "load_recipe": "load", "Recipe": "model", "render_problems": "problems"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
