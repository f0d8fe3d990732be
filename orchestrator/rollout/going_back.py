"""Which generation a rollback goes back to, told from what the ledger has of an endpoint. Pure."""

from __future__ import annotations

from typing import Final

from orchestrator.core.errors import UsageError
from orchestrator.ledger import Generation, GenerationState

SERVED: Final = frozenset(
    {GenerationState.LIVE, GenerationState.WARM, GenerationState.DRAINING, GenerationState.RETIRED}
)


def live_one(known: tuple[Generation, ...], endpoint: str) -> Generation:
    """Return the live generation.

    Raises:
        UsageError: There is none.
    """
    live = next((g for g in known if g.state == GenerationState.LIVE), None)
    if live is None:
        raise UsageError(f"no generation of endpoint {endpoint!r} is live", hint="orchestrate endpoint list")
    return live


def failed(known: tuple[Generation, ...], live: int) -> list[int]:
    """Return the rollbacks from a live generation whose builds could not be loaded, or were not proven."""
    return [g.number for g in known if g.number > live and g.kind == "rollback" and g.state == GenerationState.FAILED]


def unfinished(known: tuple[Generation, ...], live: Generation) -> bool:
    """Tell whether a killed rollback has committed and not let the former generation end: a repeat is no second one."""
    return live.kind == "rollback" and any(g.state == GenerationState.DRAINING for g in known)


def build(generation: Generation) -> tuple[object, ...]:
    """Return what tells two builds apart: the bundle, what was compiled of it, and on what it runs."""
    builds = tuple(each["variant"] for each in generation.builds)
    return (generation.bundle, generation.variant, generation.runtime, generation.device, builds)


def origin(known: tuple[Generation, ...], of: Generation) -> Generation:
    """Return the latest generation before `of` that served the same build; itself where there is none."""
    same = [g for g in known if g.number < of.number and g.state in SERVED and build(g) == build(of)]
    return same[-1] if same else of


def before(known: tuple[Generation, ...], live: Generation) -> int:
    """Return the generation that was live before; 0 = none."""
    return max((g.number for g in known if g.number < live.number and g.state in SERVED), default=0)


def target(known: tuple[Generation, ...], live: Generation, to: int | None) -> Generation:
    """Return the generation to go back to.

    What was rolled back from is not gone back to unless it is asked for: from a rollback the way leads further back.
    """
    served = [g for g in known if g.state in SERVED and g.number != live.number]
    if to is not None:
        found = next((g for g in known if g.number == to and g.state in SERVED), None)
        if found is None:
            numbers = ", ".join(str(g.number) for g in (*served, live))
            raise UsageError(f"generation {to} of {live.endpoint!r} has never served", hint=f"these have: {numbers}")
        return found
    below = live
    while below.kind == "rollback" and (earlier := origin(known, below)).number != below.number:
        below = earlier
    other = [g for g in served if g.number < below.number and build(g) != build(live)]
    if not other:
        raise UsageError(
            f"nothing is left to go back to: no other build served at endpoint {live.endpoint!r} before generation {below.number}"
            + (f", whose build generation {live.number} serves" if below.number != live.number else ""),
            hint="name a generation with --to, also one that was rolled back from; `orchestrate rollout history` lists them",
        )
    return other[-1]
