"""What ends a rollout at once, without statistics: failures in a row, a crash loop, answers beyond a ceiling. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from orchestrator.ledger import Generation
from orchestrator.rollout.evidence.rows import Delta, Row
from orchestrator.rollout.evidence.spec import KillSpec
from orchestrator.serving.observe import buckets

_RECENT: Final = 50
"""Rows that "the last answers" are looked for in."""


def reason_to_kill(spec: KillSpec, rows: Sequence[tuple[int, Row]], restarts: int) -> str:
    """Return why the rollout must end now; empty when nothing says so.

    Args:
        spec: The limits.
        rows: All evidence so far.
        restarts: How often the canary's worst replica was started again since the rollout began, beyond stable's worst.
    """
    latest = next((row for _, row in reversed(rows) if isinstance(row, Delta)), None)
    if latest is not None and spec.failures_in_row is not None and latest.failures_in_row >= spec.failures_in_row:
        return f"{latest.failures_in_row} requests to the canary failed in a row (limit {spec.failures_in_row})"
    if spec.restarts is not None and restarts >= spec.restarts:
        return f"a replica of the canary was started again {restarts} times more than any of stable's (limit {spec.restarts})"
    return _too_slow(spec, rows)


def restarts_of(status: Mapping[str, Any], generation: Generation | None) -> dict[str, int]:
    """Return how often each replica of a generation was started again in its agent's life, by slot and stage."""
    found: dict[str, int] = {}
    if generation is None:
        return found
    wanted = (generation.endpoint, generation.bundle, generation.variant)
    for agent in _rows(status, "agents"):
        for replica in _rows(agent, "replicas"):
            if (replica.get("endpoint"), replica.get("bundle"), replica.get("variant", wanted[2])) == wanted:
                slot = f"{agent.get('pool')}-{agent.get('slot')}.{replica.get('stage', 'model')}"
                found[slot] = max(found.get(slot, 0), int(replica.get("restarts", 0)))
    return found


def restarts_beyond(begun: object, canary: Mapping[str, int], stable: Mapping[str, int]) -> int:
    """Return how often the canary's worst replica was started again since the rollout began, less what stable's worst was: a
    request that kills whoever computes it is not the canary's fault.

    Args:
        begun: `{"canary": ..., "stable": ...}` as they were then; a number is the canary's worst, from rollouts of before.
        canary: As they are now, see `restarts_of`.
        stable: Likewise.
    """
    if not isinstance(begun, Mapping):
        return max(0, max(canary.values(), default=0) - int(cast("int", begun)))
    was = cast("Mapping[str, Mapping[str, int]]", begun)
    return max(0, _most_grown(was.get("canary", {}), canary) - _most_grown(was.get("stable", {}), stable))


def _most_grown(before: Mapping[str, int], now: Mapping[str, int]) -> int:
    """An agent that was restarted itself counts from zero."""
    return max(
        (count - (old if count >= (old := before.get(slot, 0)) else 0) for slot, count in now.items()), default=0
    )


def _too_slow(spec: KillSpec, rows: Sequence[tuple[int, Row]]) -> str:
    if spec.latency_ceiling_s is None:
        return ""
    counted: dict[int, int] = {}
    for _, row in list(reversed(rows))[:_RECENT]:
        if isinstance(row, Delta) and row.traffic != "version":  # who names a version chooses what is measured
            for bucket, count in row.canary.total.items():
                counted[int(bucket)] = counted.get(int(bucket), 0) + count
        if sum(counted.values()) >= spec.least_answers:
            break
    total = sum(counted.values())
    if total < spec.least_answers:
        return ""
    below = 0
    for bucket in sorted(counted):
        below += counted[bucket]
        if 2 * below >= total:
            median_s = buckets.lower_us(bucket) / 1e6
            if median_s > spec.latency_ceiling_s:
                return f"half of the canary's last {total} answers took over {median_s:.3g} s (limit {spec.latency_ceiling_s:g} s)"
            break
    return ""


def _rows(body: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    return cast("Sequence[Mapping[str, Any]]", body.get(name) or ())
