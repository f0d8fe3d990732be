"""Before a canary is loaded: does it fit beside what is there? A warm generation gives way to it, a live one never."""

from __future__ import annotations

from orchestrator.core.errors import NoCapacity
from orchestrator.ledger import Generation, GenerationState, Ledger
from orchestrator.ledger.rows import values_of
from orchestrator.rollout import capacity
from orchestrator.rollout.request import DeployRequest
from orchestrator.rollout.site import Site
from orchestrator.rollout.stage import Stage


def make_room(ledger: Ledger, site: Site, stage: Stage, asked: DeployRequest, live: Generation | None) -> None:
    """Return when the pool can hold the new generation beside the live one.

    Raises:
        NoCapacity: It cannot, even without warm generations; the hint says what fits.
    """
    if asked.facts is None:
        return
    known = ledger.generations.list(asked.endpoint)
    slots = ledger.generations.slots(asked.endpoint)
    stable = capacity.Build.of(live) if live is not None else None
    number = 1 + max((g.number for g in known), default=0)
    canary = capacity.Build.of(_as_generation(asked, site.name, number))
    found = capacity.check(site.status(), stable, canary, asked.strategy, asked.facts, slots=slots)
    warm = [g for g in known if g.state == GenerationState.WARM]
    if not found.fits and warm:
        for generation in warm:
            stage.set_state(generation, GenerationState.DRAINING)
        stage.publish()
        stage.end_former(asked.endpoint, asked.drain_timeout_s)
        found = capacity.check(site.status(), stable, canary, asked.strategy, asked.facts, slots=slots)
    if not found.fits:
        raise NoCapacity(found.text, hint=found.offer, details={"endpoint": asked.endpoint, "pool": asked.pool})


def _as_generation(asked: DeployRequest, site: str, number: int) -> Generation:
    """Describe what is asked for as the generation that it would be."""
    wanted = values_of(asked.for_ledger(site, live=0, settled=0))
    del wanted["expected"]
    return Generation(**wanted, number=number, state=GenerationState.STAGED, error=None, created_at=0.0, changed_at=0.0)
