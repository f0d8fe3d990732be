"""Does a recipe fit an environment?"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.core.errors import PlanError
from orchestrator.environment.model import Environment
from orchestrator.environment.rollout import unmet
from orchestrator.recipe.load import LoadedRecipe
from orchestrator.recipe.problems import Loc, did_you_mean, raise_problems


def check_against(loaded: LoadedRecipe, environment: Environment) -> None:
    """Check names and SoCs; whether the devices are really there is found out by those who use them.

    Raises:
        PlanError: The recipe's pool is not in the environment, or no target is made for its SoC; the place is in the recipe.
    """
    problems = [loaded.problem(loc, message) for loc, message in _misfits(loaded, environment)]
    if problems:
        raise_problems(problems, PlanError)


def _misfits(loaded: LoadedRecipe, environment: Environment) -> Iterator[tuple[Loc, str]]:
    rollout = loaded.recipe.rollout
    if rollout is None:
        return
    pool = environment.pools.get(rollout.pool)
    if pool is None:
        near = did_you_mean(rollout.pool, environment.pools)
        yield ("rollout", "pool"), f"the environment has no pool `{rollout.pool}`{near or ' (it has none at all)'}"
        return
    socs = {target.soc for target in loaded.recipe.targets}
    lacking = [soc for soc in pool.socs if soc not in socs]
    if socs and lacking and None not in socs:
        made_for = ", ".join(sorted(str(soc) for soc in socs))
        has = ", ".join(lacking)
        yield ("rollout", "pool"), f"pool `{rollout.pool}` has {has}, but the targets are made for {made_for}"
    if pool.rollout is not None:
        for loc, message in unmet(rollout, pool.rollout):
            yield loc, f"pool `{rollout.pool}`: {message}"
