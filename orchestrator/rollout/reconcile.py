"""The routing table is a function of the ledger; publishing it again is always right."""

from __future__ import annotations

from itertools import groupby
from typing import Final

from orchestrator.core.errors import Conflict, LedgerError
from orchestrator.ledger import Generation, GenerationState, Lease, Ledger, TableStamp
from orchestrator.rollout.site import Site
from orchestrator.serving import table

_ATTEMPTS: Final = 5
_WEIGHTS: Final = {GenerationState.LIVE: 100, GenerationState.STAGED: 0, GenerationState.DRAINING: 0}


def build_table(stamp: TableStamp) -> table.RoutingTable:
    """Return the table that shows exactly what the ledger says. Pure.

    The live generation has all the weight; staged and draining ones are loaded beside it with none.
    """
    endpoints: dict[str, table.Endpoint] = {}
    for name, group in groupby(stamp.generations, key=lambda generation: generation.endpoint):
        generations = list(group)
        rows = tuple(_row(generation) for generation in generations)
        endpoints[name] = table.Endpoint(name, generations[-1].pool, rows, stamp.slots.get(name))
    return table.RoutingTable(stamp.version, endpoints)


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


def _row(generation: Generation) -> table.Generation:
    return table.Generation(
        generation=generation.number,
        bundle=generation.bundle,
        path=generation.path,
        runtime=generation.runtime,
        weight=_WEIGHTS[generation.state],
        state=generation.state.value,
        device=generation.device,
        variant=generation.variant,
        variant_path=generation.variant_path,
        builds=tuple(
            table.Build(b["soc"], b["runtime"], b["device"], b["variant"], b["variant_path"]) for b in generation.builds
        ),
    )
