"""Which strategy a promotion goes by: the recipe's, else that of the endpoint's last move, else direct; never below the pool's demands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import UsageError
from orchestrator.environment.pool import Pool
from orchestrator.ledger import Ledger

if TYPE_CHECKING:
    from orchestrator.environment.rollout import RolloutPolicy
    from orchestrator.recipe import Recipe
    from orchestrator.rollout.strategy import Strategy


def choose_strategy(
    workplace: Workplace, ledger: Ledger, endpoint: str, pool_name: str, recipe: Path | None
) -> tuple[Strategy, Recipe | None]:
    """Return the strategy, and the recipe that it was read from.

    Raises:
        RecipeError: The recipe is wrong.
        UsageError: The recipe rolls out elsewhere, or the pool demands more.
    """
    from orchestrator.recipe import load_recipe
    from orchestrator.rollout.strategy import resolve

    policy = pool_of(workplace, pool_name).rollout
    if recipe is None:
        known = last_strategy(ledger, endpoint)
        return (resolve(None, policy) if known is None else _at_least(known, policy)), None
    loaded = load_recipe(recipe).recipe
    rollout = loaded.rollout
    if rollout is None:
        raise UsageError(f"{recipe} has no `rollout`", hint="add one, or leave --recipe out", place=str(recipe))
    if (rollout.endpoint, rollout.pool) != (endpoint, pool_name):
        raise UsageError(
            f"{recipe} rolls out to endpoint {rollout.endpoint!r} in pool {rollout.pool!r}, "
            f"and {endpoint!r} in {pool_name!r} was asked for",
            hint="give that endpoint and that pool, or another recipe",
        )
    return resolve(rollout, policy), loaded


def pool_of(workplace: Workplace, name: str) -> Pool:
    """Return a pool of the environment.

    Raises:
        UsageError: There is none of that name.
    """
    pools = workplace.environment.pools
    if name not in pools:
        raise UsageError(f"the environment has no pool {name!r}", hint=f"pools: {', '.join(pools) or 'none'}")
    return pools[name]


def last_strategy(ledger: Ledger, endpoint: str) -> Strategy | None:
    """Return the strategy of the endpoint's newest promotion that had one; None without any.

    A rollback goes back to what was served, not to how it was rolled out.
    """
    from orchestrator.rollout.request import STRATEGY
    from orchestrator.rollout.strategy import Strategy

    known: dict[int, Mapping[str, Any]] = {row.generation: row.strategy for row in ledger.rollouts.list(endpoint)}
    for generation in ledger.generations.list(endpoint):
        if generation.kind == "promote" and generation.evidence.get(STRATEGY):
            known.setdefault(generation.number, generation.evidence[STRATEGY])
    return Strategy.from_json(known[max(known)]) if known else None


def _at_least(strategy: Strategy, policy: RolloutPolicy | None) -> Strategy:
    """Return an earlier strategy with at least the approvals that the pool demands now.

    Raises:
        UsageError: It lacks what the pool demands in steps, weights, metrics, margins or samples.
    """
    if policy is None:
        return strategy
    lacks = list(_lacks(strategy, policy))
    if lacks:
        raise UsageError(
            f"the endpoint's last strategy is no longer enough for its pool: {'; '.join(lacks)}",
            hint="name a recipe with --recipe, whose rollout has it (`pools.<pool>.rollout` of the environment demands it)",
        )
    return replace(strategy, approvals=max(strategy.approvals, policy.approvals))


def _lacks(strategy: Strategy, policy: RolloutPolicy) -> list[str]:
    from orchestrator.rollout.strategy_steps import SetWeight

    found: list[str] = []
    if len(strategy.steps) < policy.min_steps:
        found.append(f"it has {len(strategy.steps)} steps, at least {policy.min_steps} are demanded (min_steps)")
    first = next((step.weight for step in strategy.steps if isinstance(step, SetWeight) and step.weight), 100)
    if first > policy.max_first_weight:
        found.append(
            f"its first weight is {first} %, at most {policy.max_first_weight} % is allowed (max_first_weight)"
        )
    both = [(spec, metric) for spec in strategy.analyses for metric in spec.metrics if not metric.dry_run]
    names = {metric.name for _, metric in both}
    found += [f"{name} must judge it (require)" for name in policy.require if name not in names]
    for spec, metric in both:
        least = spec.min_samples if metric.min_samples is None else metric.min_samples
        if policy.min_samples is not None and metric.prometheus is None and least < policy.min_samples:
            found.append(f"{metric.name} has {least} min_samples, at least {policy.min_samples} are demanded")
        largest = policy.max_margins.get(metric.name)
        if largest is not None and metric.limit > largest:
            found.append(f"the margin {metric.limit:g} of {metric.name} is above {largest:g} (max_margins)")
    return found
