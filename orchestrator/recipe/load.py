"""Recipe file -> `LoadedRecipe`: read, override, fill in parameters, validate, check. One error tells all problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.errors import RecipeError
from orchestrator.recipe.cross_checks import cross_check
from orchestrator.recipe.model import Recipe
from orchestrator.recipe.overrides import apply_overrides
from orchestrator.recipe.problems import Loc, Problem, raise_problems
from orchestrator.recipe.template import fill
from orchestrator.recipe.validation import check
from orchestrator.recipe.yaml_text import Document, read_document


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe and the text that it came from.

    Attributes:
        recipe: The resolved model: overrides applied, parameters filled in.
        path: The file, as given.
        folder: Absolute folder of the file; the user's code is here.
        text: The file as written.
        sha256: `sha256:<hex>` of the file's bytes.
        document: Positions.
    """

    recipe: Recipe
    path: Path
    folder: Path
    text: str
    sha256: str
    document: Document

    def position(self, loc: Loc) -> str:
        """Return `file:line:column` of a value, or the `--set` that gave it; of the nearest parent when absent."""
        return self.document.place(loc)[2]

    def problem(self, loc: Loc, message: str) -> Problem:
        """Return a problem placed at a value, for checks that need more than the recipe."""
        return self.document.problem(loc, message)


def load_recipe(path: Path, *, set_: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check a recipe.

    Args:
        path: The file; its folder holds the user's code.
        set_: Overrides `path=value`, applied before parameters are filled in.

    Raises:
        RecipeError: Anything wrong with it; `place` is `file:line:column` and `details["problems"]` lists all.
    """
    document = apply_overrides(read_document(path, RecipeError), set_, RecipeError)
    filled = fill(document)
    document, problems = filled.document, filled.problems
    recipe, found = check(document, Recipe, filled.notes)
    problems += [problem for problem in found if problem.path not in filled.unfilled]
    folder = path.absolute().parent
    if recipe is not None:
        # What is said of the whole recipe ("nothing to do") follows from a misspelt section, where there is one.
        placed = [document.problem(loc, message) for loc, message in cross_check(recipe, folder) if loc or not problems]
        problems += [problem for problem in placed if problem.path not in filled.unfilled]
    if problems:
        raise_problems(problems, RecipeError)
    if recipe is None:
        raise RecipeError("the recipe is not valid", place=str(path))
    return LoadedRecipe(recipe, path, folder, document.text, document.sha256, document)
