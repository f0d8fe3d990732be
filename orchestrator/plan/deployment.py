"""The draft of a deploy: which variant each SoC of the pool loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.core.errors import PlanError
from orchestrator.environment import Environment
from orchestrator.environment.pool import Pool
from orchestrator.plan import conversion
from orchestrator.plan.model import Draft, Input, Retries
from orchestrator.recipe import Recipe
from orchestrator.recipe.model import Target
from orchestrator.recipe.rollout import Rollout

_PLACE = "rollout.pool"


def draft_deploy(
    recipe: Recipe, environment: Environment, tools: Mapping[str, str], strategy: Mapping[str, Any] | None = None
) -> Draft:
    """Return the deploy of a recipe that has a `rollout`.

    Inputs: `bundle`, `variant` for the pool's first SoC, `variant-<SoC>` for each further one. A pool of real devices takes
    what was compiled, a rehearsal what stands in for it; `spec.device` is only there for real devices, `spec.builds` only where
    the pool has several SoCs.

    Args:
        recipe: The resolved recipe.
        environment: Where it runs.
        tools: Format -> identity of the compiler for it on the site.
        strategy: How it takes over from what is live; `spec.strategy`, which no fingerprint covers.

    Raises:
        PlanError: No such pool, no target for one of its SoCs, or no compiler for a target of a real pool.
    """
    rollout = recipe.rollout
    assert rollout is not None
    pool = _pool(rollout, environment)
    spec: dict[str, Any] = {"endpoint": rollout.endpoint, "pool": rollout.pool}
    if strategy:
        spec["strategy"] = dict(strategy)
    inputs = [Input("bundle", "bundle", "bundle")]
    found = {soc: _target(recipe, rollout, pool, soc) for soc in pool.socs}
    if not pool.rehearsal:
        spec["device"] = pool.socs[0]
        for target in found.values():
            _check_compiler(rollout, target, tools)
    if len(found) > 1:
        spec["builds"] = [[soc, target.name] for soc, target in found.items() if target is not None]
    for position, (soc, target) in enumerate(found.items()):
        if target is None:  # a rehearsal without a target serves the fp32 graph
            continue
        if position == 0:
            spec["target"] = target.name
            spec["parity"] = target.parity.model_dump(mode="json")
        name = "variant" if position == 0 else f"variant-{soc}"
        inputs.append(Input(name, conversion.compile_name(target), "rehearsal" if pool.rehearsal else "variant"))
    return Draft("deploy", "deploy", pool.site, spec, tuple(inputs), ("register",), retries=Retries(infra=1))


def _pool(rollout: Rollout, environment: Environment) -> Pool:
    pool = environment.pools.get(rollout.pool)
    if pool is None:
        have = ", ".join(environment.pools) or "none"
        raise PlanError(f"the environment has no pool {rollout.pool!r}", hint=f"pools: {have}", place=_PLACE)
    return pool


def _target(recipe: Recipe, rollout: Rollout, pool: Pool, soc: str) -> Target | None:
    """Return the first target for this SoC; None where a rehearsal of one SoC can serve the fp32 graph."""
    target = next((each for each in recipe.targets if each.soc == soc), None)
    if target is None and (not pool.rehearsal or len(pool.socs) > 1):
        raise PlanError(
            f"pool {rollout.pool!r} has {soc} devices, and no target is made for them",
            hint=f"add a target with `soc: {soc}`, or roll out to another pool",
            place=_PLACE,
        )
    return target


def _check_compiler(rollout: Rollout, target: Target | None, tools: Mapping[str, str]) -> None:
    if target is None or target.format == "torch" or tools.get(target.format):
        return
    names = {"om": "atc", "mindir": "mindspore_lite_python", "onnx": "onnxruntime_cann_python"}
    raise PlanError(
        f"pool {rollout.pool!r} has real {target.soc} devices, and this site has no compiler for target "
        f"{target.name!r} ({target.format})",
        hint=f"set tools.{names[target.format]} in the environment, or rehearse in a pool with `rehearsal: true`",
        place=_PLACE,
    )
