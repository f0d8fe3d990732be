"""Recipe and environment to plan: what `plan` prints and `run` executes, made by one function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.app.known import KnownState
from orchestrator.app.sources import data_identities, source_digests, source_identity
from orchestrator.app.toolchain import toolchain_identities
from orchestrator.app.wiring import Workplace
from orchestrator.core.digests import sha256_json
from orchestrator.environment import Environment, check_against
from orchestrator.ledger import Ledger
from orchestrator.plan.drafts import make_drafts
from orchestrator.plan.model import Draft, Plan
from orchestrator.plan.planner import make_plan
from orchestrator.recipe import LoadedRecipe, Recipe, load_recipe
from orchestrator.rollout.strategy import resolve


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recipe that fits its environment, with its steps."""

    workplace: Workplace
    loaded: LoadedRecipe
    drafts: tuple[Draft, ...]
    recipe_sha256: str
    environment_sha256: str

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.loaded.recipe.name

    def plan(self, ledger: Ledger, refresh: Sequence[str] = ()) -> Plan:
        """Decide each step by what is done now."""
        return make_plan(
            self.drafts,
            KnownState(self.workplace, ledger, self.name),
            recipe=self.name,
            recipe_sha256=self.recipe_sha256,
            environment_sha256=self.environment_sha256,
            refresh=refresh,
        )


def _strategy(recipe: Recipe, environment: Environment) -> dict[str, Any] | None:
    pool = environment.pools.get(recipe.rollout.pool) if recipe.rollout is not None else None
    return resolve(recipe.rollout, pool.rollout).to_json() if pool is not None else None


def prepare(workplace: Workplace, recipe_path: Path, set_: Sequence[str] = ()) -> Prepared:
    """Read, check and lay out a recipe.

    Raises:
        RecipeError: The recipe is wrong; every problem with its position.
        PlanError: It does not fit the environment.
    """
    loaded = load_recipe(recipe_path, set_=set_)
    recipe, environment = loaded.recipe, workplace.environment
    check_against(loaded, environment)
    data = data_identities(recipe, loaded.folder)
    origin = source_identity(recipe, loaded.folder)
    sources, tools = source_digests(recipe, loaded.folder), toolchain_identities(environment.tools)
    drafts = make_drafts(recipe, environment, sources, data, origin, tools, _strategy(recipe, environment))
    return Prepared(
        workplace,
        loaded,
        tuple(drafts),
        sha256_json(recipe.model_dump(mode="json")),
        sha256_json(environment.model_dump(mode="json")),
    )
