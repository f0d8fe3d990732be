"""Drafts + what is known = a plan. The decision for each step, in order, with its reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from orchestrator.core.errors import PlanError
from orchestrator.plan.fingerprint import explain, fingerprint_of, parts_of
from orchestrator.plan.gates import judge_result
from orchestrator.plan.model import Action, Draft, Plan, PlannedStep


class Known(Protocol):
    """What is already done, as far as planning cares."""

    def result(self, fingerprint: str) -> Mapping[str, Any] | None:
        """Return the stored result of a fingerprint, its artifacts checked; None where there is none."""
        ...

    def resumable(self, fingerprint: str) -> str | None:
        """Say what an unfinished attempt left to go on from (`checkpoint of epoch 5`), or None."""
        ...

    def previous_parts(self, step: str) -> Mapping[str, Any] | None:
        """Return the fingerprint parts of the step's last run in this recipe."""
        ...

    def deployed(self, endpoint: str, pool: str) -> Deployed | None:
        """Return what the endpoint serves now."""
        ...


@dataclass(frozen=True, slots=True)
class Deployed:
    """What an endpoint serves: the artifact digests of the live generation's bundle and variant, and whether it answers.

    `facts` are those that the deploy step gave: endpoint, generation, bundle, pool, device, url. `others` are the variants of
    further SoCs, by the name of the deploy's input.
    """

    artifact: str
    generation: int
    answering: bool
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    variant: str = ""
    others: Mapping[str, str] = field(default_factory=dict[str, str])


def order(drafts: Sequence[Draft]) -> list[Draft]:
    """Return the drafts so that needs come first, otherwise in the order given.

    Raises:
        PlanError: A need is unknown, or there is a cycle.
    """
    by_name = {draft.name: draft for draft in drafts}
    done: dict[str, Draft] = {}
    path: list[str] = []

    def visit(name: str, wanted_by: str) -> None:
        if name in done:
            return
        if name in path:
            circle = " → ".join([*path[path.index(name) :], name])
            raise PlanError(f"the steps need each other: {circle}", hint="remove one of these needs", place=wanted_by)
        if name not in by_name:
            raise PlanError(f"step {wanted_by!r} needs {name!r}, which is no step", hint=f"have: {', '.join(by_name)}")
        path.append(name)
        for need in by_name[name].needs:
            visit(need, name)
        path.pop()
        done[name] = by_name[name]

    for draft in drafts:
        visit(draft.name, draft.name)
    return list(done.values())


def make_plan(
    drafts: Sequence[Draft],
    known: Known,
    *,
    recipe: str,
    recipe_sha256: str,
    environment_sha256: str,
    refresh: Collection[str] = (),
) -> Plan:
    """Decide each step.

    Args:
        drafts: The recipe's steps.
        known: What is done.
        recipe: The recipe's name.
        recipe_sha256: Digest of the resolved recipe.
        environment_sha256: Digest of the environment.
        refresh: Names of steps that run even where a result exists.

    Raises:
        PlanError: Unknown step in `refresh`, unknown need, or a cycle.
    """
    names = {draft.name for draft in drafts}
    for name in refresh:
        if name not in names:
            raise PlanError(f"--refresh {name}: no such step", hint=f"have: {', '.join(sorted(names))}")
    planned: dict[str, PlannedStep] = {}
    for draft in order(drafts):
        planned[draft.name] = _decide(draft, planned, known, refresh=draft.name in refresh)
    return Plan(recipe, recipe_sha256, environment_sha256, tuple(planned.values()))


def _decide(draft: Draft, planned: Mapping[str, PlannedStep], known: Known, *, refresh: bool) -> PlannedStep:
    open_needs = [need for need in draft.needs if not planned[need].is_done]
    unknown = next((i.step for i in draft.inputs if i.step in open_needs), None)
    if unknown is not None:
        return PlannedStep(draft, Action.RUN_LATER, f"{unknown} runs first", refresh=refresh)
    inputs = {i.name: planned[i.step].outputs[i.output] for i in draft.inputs}
    parts = parts_of(draft, inputs)
    fingerprint = fingerprint_of(parts)
    if draft.kind == "deploy":
        return _decide_deploy(draft, inputs, fingerprint, parts, known, refresh=refresh)
    result = None if refresh else known.result(fingerprint)
    if result is not None:
        reason = f"nothing changed; made by {result.get('execution', 'an earlier execution')}"
        miss = judge_result(draft.name, draft.spec, result)
        if miss is not None:
            reason = f"nothing changed, but its gate says no: {miss.message}"
        outputs = {name: str(ref["digest"]) for name, ref in cast("dict[str, Any]", result["outputs"]).items()}
        return PlannedStep(draft, Action.REUSE, reason, fingerprint, parts, outputs, result)
    reason = "refresh asked" if refresh else explain(known.previous_parts(draft.name), parts)
    left = None if refresh else known.resumable(fingerprint)
    if left:
        return PlannedStep(draft, Action.RESUME, left, fingerprint, parts)
    if open_needs:
        reason = f"{reason}; after {open_needs[0]}"
    return PlannedStep(draft, Action.RUN, reason, fingerprint, parts, refresh=refresh)


def _decide_deploy(
    draft: Draft,
    inputs: Mapping[str, str],
    fingerprint: str,
    parts: Mapping[str, Any],
    known: Known,
    *,
    refresh: bool,
) -> PlannedStep:
    live = known.deployed(str(draft.spec["endpoint"]), str(draft.spec["pool"]))
    if live is None:
        return PlannedStep(draft, Action.RUN, "nothing is live yet", fingerprint, parts)
    others = {name: digest for name, digest in inputs.items() if name.startswith("variant-")}
    if (live.artifact, live.variant, live.others) != (inputs["bundle"], inputs.get("variant", ""), others):
        what = "bundle" if live.artifact != inputs["bundle"] else "variant of the bundle"
        reason = f"generation {live.generation} serves another {what}"
        return PlannedStep(draft, Action.RUN, reason, fingerprint, parts)
    if refresh or not live.answering:
        reason = "refresh asked" if refresh else f"generation {live.generation} does not answer"
        return PlannedStep(draft, Action.RUN, reason, fingerprint, parts)
    result: dict[str, Any] = {"outputs": {}, "metrics": {}, "facts": dict(live.facts)}
    return PlannedStep(draft, Action.REUSE, f"generation {live.generation} is live", fingerprint, parts, {}, result)
