"""The routing table is a function of the ledger; publishing it again is always right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final

from orchestrator.core.errors import Conflict, LedgerError
from orchestrator.ledger import Generation, GenerationState, Lease, Ledger, Rollout, TableStamp
from orchestrator.rollout.site import Site
from orchestrator.serving import table

_ATTEMPTS: Final = 5


def build_table(stamp: TableStamp) -> table.RoutingTable:
    """Return the table that shows exactly what the ledger says. Pure.

    The live generation has all the weight but what a rollout gives to the staged one; the others are loaded beside them
    with none.
    """
    endpoints: dict[str, table.Endpoint] = {}
    for name, group in groupby(stamp.generations, key=lambda generation: generation.endpoint):
        generations = list(group)
        rollout = _under_way(stamp.rollouts.get(name), generations)
        rows = tuple(_row(generation, _weight(generation, rollout)) for generation in generations)
        split = None if rollout is None else _split(rollout)
        endpoints[name] = table.Endpoint(name, generations[-1].pool, rows, stamp.slots.get(name), split)
    return table.RoutingTable(stamp.version, endpoints)


def _under_way(rollout: Rollout | None, generations: Sequence[Generation]) -> Rollout | None:
    """Return the rollout if both of its generations are where it needs them; one that has just ended moves nothing."""
    if rollout is None:
        return None
    states = {generation.number: generation.state for generation in generations}
    places = (states.get(rollout.stable), states.get(rollout.generation))
    return rollout if places == (GenerationState.LIVE, GenerationState.STAGED) else None


def _weight(generation: Generation, rollout: Rollout | None) -> int:
    if generation.state == GenerationState.LIVE:
        return 100 if rollout is None else 100 - rollout.weight
    return rollout.weight if rollout is not None and generation.number == rollout.generation else 0


def _split(rollout: Rollout) -> table.Split:
    strategy = rollout.strategy
    found = [strategy.get("analysis"), *(step.get("analysis") for step in strategy.get("steps", ()))]
    metrics = [metric for analysis in found if analysis for metric in analysis.get("metrics", ())]
    alike: dict[str, float] = {}
    for metric in metrics:
        if metric.get("name") == "parity":
            # Counted once for all analyses: what the strictest of them takes for unlike is unlike.
            own = {name: float(metric[name]) for name in ("rtol", "atol") if name in metric}
            alike |= {name: min(value, alike.get(name, value)) for name, value in own.items()}
    return table.Split(
        stable=rollout.stable,
        canary=rollout.generation,
        mirror=rollout.mirror,
        headers=tuple(table.HeaderRoute(h["name"], h["how"], h["value"]) for h in rollout.headers),
        sticky=str(strategy.get("sticky", "")),
        **alike,
    )


def publish(ledger: Ledger, site: Site, lease: Lease | None = None) -> table.RoutingTable:
    """Build the site's table with the next version and hand it to the router; returns what was published.

    Another publisher may be faster in between; its table is then followed by a newer one of ours.

    Args:
        ledger: The serve site's ledger.
        site: Whose router is told.
        lease: When given, a fenced caller publishes nothing.

    Raises:
        Conflict: Fenced.
        LedgerError: The router has seen versions that this ledger never gave: the ledger is older than the router.
        Unreachable: The router did not answer; the ledger stands, and the next publish makes it true.
    """
    attempts = 0
    while True:
        wanted = build_table(ledger.generations.stamp(site.name, lease))
        try:
            site.put_table(wanted)
        except Conflict as error:
            attempts += 1
            if attempts < _ATTEMPTS:
                continue
            raise LedgerError(
                f"the router of site {site.name!r} refused table version {wanted.version}: {error.message}",
                place=ledger.url,
                hint="the router has followed another ledger, or this one was restored from an old backup; "
                "use the right ledger, or take the site down, remove the router's table.json and start it again",
            ) from error
        return wanted


def _row(generation: Generation, weight: int) -> table.Generation:
    return table.Generation(
        generation=generation.number,
        bundle=generation.bundle,
        path=generation.path,
        runtime=generation.runtime,
        weight=weight,
        state=generation.state.value,
        device=generation.device,
        variant=generation.variant,
        variant_path=generation.variant_path,
        builds=tuple(
            table.Build(b["soc"], b["runtime"], b["device"], b["variant"], b["variant_path"]) for b in generation.builds
        ),
    )
