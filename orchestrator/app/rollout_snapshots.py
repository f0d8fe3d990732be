"""Ledger rows of an endpoint -> the frozen pictures of its moves and aliases that tracking mirrors into MLflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from orchestrator.core.digests import sha256_json
from orchestrator.ledger import Generation, GenerationState, Ledger
from orchestrator.ledger.generations import variant_artifacts
from orchestrator.tracking.rollout_snapshot import AliasSnapshot, ModelRef, Placed, RolloutSnapshot
from orchestrator.tracking.snapshot import MODEL_KINDS

if TYPE_CHECKING:
    from orchestrator.ledger import Rollout

MoveState = Literal["progressing", "paused", "succeeded", "aborted"]

_WAS_LIVE: Final = frozenset(
    {GenerationState.LIVE, GenerationState.WARM, GenerationState.DRAINING, GenerationState.RETIRED}
)


def move_state(generation: Generation, row: Rollout | None) -> MoveState:
    """Return how far the move to a generation is; one without a rollout is over as soon as the generation is live."""
    if generation.state == GenerationState.FAILED:
        return "aborted"
    if generation.state in _WAS_LIVE:
        return "succeeded"
    if row is None or row.state.active is False:
        return "progressing"
    return "paused" if row.state.value == "paused" else "progressing"


def previous_of(generation: Generation, row: Rollout | None, known: Sequence[Generation]) -> int:
    """Return the generation that was live before a move; 0 = none."""
    if row is not None:
        return row.stable
    return max((g.number for g in known if g.number < generation.number and g.state in _WAS_LIVE), default=0)


def move_snapshot(
    ledger: Ledger, generation: Generation, known: Sequence[Generation], mirrored: Callable[[str], bool]
) -> RolloutSnapshot:
    """Return the picture of one move.

    Args:
        ledger: The truth.
        generation: Where it goes.
        known: All generations of the endpoint.
        mirrored: Tells whether MLflow will never get more of an execution than it has.
    """
    row = ledger.rollouts.get(generation.endpoint, generation.number)
    execution, recipe, models = origin(ledger, generation)
    state = move_state(generation, row)
    ended = state in {"succeeded", "aborted"}
    error = (row.error if row is not None else None) or generation.error
    strategy: Any = row.strategy if row is not None else generation.evidence.get("strategy")
    fields: dict[str, Any] = {}
    if row is not None:
        rows = ledger.rollouts.evidence(row.endpoint, row.generation)
        from orchestrator.app.rollout_picture import picture

        shown = picture(row, rows)
        fields = {"points": shown.points, "figures": shown.figures, "plot": shown.plot, "approvals": row.approvals}
        fields["verdict"] = row.verdict
        fields["evidence"] = [{"seq": each.seq, "t": each.t, **each.body} for each in rows] if ended else ()
    return RolloutSnapshot(
        endpoint=generation.endpoint,
        generation=generation.number,
        kind=generation.kind,
        stable=previous_of(generation, row, known),
        recipe=recipe,
        state=state,
        pool=generation.pool,
        site=generation.site,
        bundle=generation.bundle,
        variant=generation.variant,
        device=generation.device,
        actor=generation.actor,
        reason=generation.reason,
        execution=execution,
        started_at_ms=_ms(generation.created_at),
        ended_at_ms=_ended_ms(generation, row) if ended else None,
        models=models,
        expected=bool(execution) and not mirrored(execution),
        strategy=strategy,
        strategy_digest=sha256_json(strategy) if strategy else "",
        error=str(error.get("message", "")) if error else "",
        **fields,
    )


def alias_snapshot(
    ledger: Ledger, endpoint: str, known: Sequence[Generation], mirrored: Callable[[str], bool]
) -> AliasSnapshot:
    """Return where the aliases of an endpoint's models shall point now."""
    live = next((g for g in known if g.state == GenerationState.LIVE), None)
    staged = next((g for g in known if g.state == GenerationState.STAGED), None)
    shown: dict[str, Generation] = {}
    if live is not None:
        shown["live"] = live
        number = previous_of(live, ledger.rollouts.get(endpoint, live.number), known)
        former = next((g for g in known if g.number == number), None)
        if former is not None:
            shown["previous"] = former
    if staged is not None and live is not None:
        shown["canary"] = staged
    places = {alias: _placed(ledger, generation, mirrored) for alias, generation in shown.items()}
    at_ms = _ms(live.changed_at) if live is not None else 0
    return AliasSnapshot(endpoint, at_ms, places, (staged or live or known[-1]).actor)


def _placed(ledger: Ledger, generation: Generation, mirrored: Callable[[str], bool]) -> Placed:
    execution, recipe, models = origin(ledger, generation)
    expected = bool(execution) and not mirrored(execution)
    return Placed(generation.number, recipe, generation.bundle, models, expected)


def origin(ledger: Ledger, generation: Generation) -> tuple[str, str, tuple[ModelRef, ...]]:
    """Return the execution that made a bundle, its recipe, and the models that are in it or were compiled from it.

    A bundle that was carried here has neither; its run goes to an experiment of the endpoint's name.
    """
    row = ledger.artifacts.get(generation.artifact) if generation.artifact else None
    if row is None or not row.execution:
        return "", generation.endpoint, ()
    recipe = ledger.executions.get(row.execution).recipe
    inside = _models(ledger, [generation.artifact])
    compiled = [each for each in _models(ledger, variant_artifacts(generation)) if each not in inside]
    return row.execution, recipe, (*inside, *(ModelRef(each.digest, each.kind, optional=True) for each in compiled))


def _models(ledger: Ledger, digests: Sequence[str]) -> list[ModelRef]:
    found: list[ModelRef] = []
    todo, seen = list(digests), set(digests)
    while todo:
        digest = todo.pop(0)
        row = ledger.artifacts.get(digest)
        if row is not None and row.kind in MODEL_KINDS:
            found.append(ModelRef(digest, row.kind))
        more = [parent for parent in ledger.artifacts.parents(digest) if parent not in seen]
        seen.update(more)
        todo += more
    return found[::-1]


def _ended_ms(generation: Generation, row: Rollout | None) -> int:
    if row is not None and row.ended_at is not None:
        return _ms(row.ended_at)
    settled = generation.state in {GenerationState.LIVE, GenerationState.FAILED}
    return _ms(generation.changed_at if settled else generation.created_at)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
