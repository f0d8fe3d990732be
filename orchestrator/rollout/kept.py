"""Which generations' files stay on disk: what is loaded, and the former ones that a rollback may want. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orchestrator.ledger import Generation, GenerationState
from orchestrator.ledger.generations import ROUTED

KEEP: Final = 2
"""Former builds that stay where no strategy says otherwise."""
_FORMER: Final = (GenerationState.WARM, GenerationState.DRAINING, GenerationState.RETIRED)


def kept(generations: Sequence[Generation]) -> tuple[Generation, ...]:
    """Return the generations of one endpoint whose files must stay.

    The last strategy's `keep` counts different builds: going back and forth between two does not push a third one out.
    """
    strategies = [g.evidence["strategy"] for g in generations if g.evidence.get("strategy")]
    keep = int(strategies[-1].get("keep", KEEP)) if strategies else KEEP
    found = [g for g in generations if g.state in ROUTED]
    live = {g.bundle for g in found if g.state == GenerationState.LIVE}
    former: dict[tuple[str, str], Generation] = {}
    for generation in sorted(generations, key=lambda g: -g.number):
        if generation.state in _FORMER and generation.bundle not in live:
            former.setdefault((generation.bundle, generation.variant), generation)
    return tuple({g.number: g for g in [*found, *list(former.values())[:keep]]}.values())
