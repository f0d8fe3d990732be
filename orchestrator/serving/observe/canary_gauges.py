"""What Prometheus sees of generations that are tried: `RouterAdmin.evidence`, without the distributions and the weights."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from orchestrator.serving.observe.exposition import Family

if TYPE_CHECKING:
    from orchestrator.serving.observe.evidence import Evidence

_ARM: Final = ("router", "endpoint", "generation", "traffic")
_PAIR: Final = ("router", "endpoint", "generation")


def canary_families(number: str, evidence: Evidence) -> list[Family]:
    """Return the families of one router process; they hold samples while a split is in the table, and a minute longer."""
    requests, odd, fell_back = Counter[tuple[str, ...]](), Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for counts in evidence.arms():
        arm = counts.arm
        key = (number, arm.endpoint, str(arm.generation), arm.traffic)
        for result, count in counts.results.items():
            requests[*key, result] += count
        odd[*key, "nonfinite"] += counts.nonfinite
        odd[*key, "saturated"] += counts.saturated
        fell_back[key] += counts.fell_back
    pairs, lost = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for endpoint, counts in evidence.pairs():
        key = (number, endpoint, str(counts.canary))
        pairs[*key, "alike"] += counts.agree
        pairs[*key, "other"] += counts.n - counts.agree
        lost[*key, "dropped"] += counts.dropped
        lost[*key, "failed"] += counts.failed
    return [
        _family("canary_requests", "Requests of endpoints with a split, by generation and how they came to it.", (*_ARM, "result"), requests),
        _family("canary_odd_outputs", "Requests whose outputs are not finite, or as large as fp16 can be.", (*_ARM, "kind"), odd),
        _family("canary_fallbacks", "Requests that the canary has failed and the stable generation was asked.", _ARM, fell_back),
        _family("canary_pairs", "Copies whose answer was compared with the user's.", (*_PAIR, "result"), pairs),
        _family("canary_lost_copies", "Copies that were dropped for load, or that the canary failed.", (*_PAIR, "reason"), lost),
    ]  # fmt: skip


def _family(name: str, about: str, labels: tuple[str, ...], counts: Counter[tuple[str, ...]]) -> Family:
    found = Family(f"orchestrate_{name}_total", "counter", about)
    for values, count in sorted(counts.items()):
        found.add(dict(zip(labels, values, strict=True)), count)
    return found
