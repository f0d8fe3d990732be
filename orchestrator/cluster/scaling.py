"""How many slots a pool should hold, by what waits at the router. Pure: no clock, no sockets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from orchestrator.cluster.pool import ScaleRule

_SLACK: Final = 0.8
"""A slot is given back only when the rest would be this full at most; else the next request would take it again."""


@dataclass(frozen=True, slots=True)
class ScaleState:
    """Where a pool stands.

    Attributes:
        target: Slots that it shall hold.
        short_since: Since when it would need more; None = it does not.
        spare_since: Since when it could do with one less.
    """

    target: int
    short_since: float | None = None
    spare_since: float | None = None


def first_state(rule: ScaleRule) -> ScaleState:
    """Return where a pool begins: with as few slots as it may hold."""
    return ScaleState(rule.min_slots)


def decide(rule: ScaleRule, state: ScaleState, load: int, now: float) -> ScaleState:
    """Return the next state.

    More slots come together, as many as the load needs once `up_after_s` is over; they go one by one, each after a whole
    `down_after_s` with too little to do.

    Args:
        rule: Of the pool.
        state: The state so far.
        load: Requests that wait or run in the pool.
        now: Seconds of a clock that never goes back.
    """
    needed = min(max(math.ceil(load / rule.target_queue), rule.min_slots), rule.max_slots)
    target = min(max(state.target, rule.min_slots), rule.max_slots)
    if needed > target:
        since = now if state.short_since is None else state.short_since
        return ScaleState(needed) if now - since >= rule.up_after_s else ScaleState(target, short_since=since)
    fewer = target - 1
    if fewer >= rule.min_slots and load <= fewer * rule.target_queue * _SLACK:
        since = now if state.spare_since is None else state.spare_since
        return ScaleState(fewer, spare_since=now) if now - since >= rule.down_after_s else _spare(target, since)
    return replace(state, target=target, short_since=None, spare_since=None)


def _spare(target: int, since: float) -> ScaleState:
    return ScaleState(target, spare_since=since)


def loads(status: Mapping[str, Any], pools: Mapping[str, str]) -> dict[str, int]:
    """Return the requests that wait or run, by pool.

    Args:
        status: The router's.
        pools: Pool of each endpoint.
    """
    found: dict[str, int] = {}
    for row in cast("Sequence[Mapping[str, Any]]", status["generations"]):
        pool = pools.get(str(row["endpoint"]))
        if pool is not None:
            found[pool] = found.get(pool, 0) + int(row["queued"]) + int(row["in_flight"])
    return found
