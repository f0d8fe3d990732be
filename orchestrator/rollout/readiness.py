"""Is a generation ready? Read from the router's status. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from orchestrator.ledger import Generation

_LOG_LINES: Final = 20
_FAILURES: Final = 2
"""An agent starts a failed replica again; once may be bad luck, so that it must have failed so often in a row."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """How far a generation is.

    Attributes:
        ready: Every agent of the pool, or as many as the endpoint takes, has a ready replica, and there is at least one.
            In a lazy pool it is enough that each has loaded and checked the model once: it is `cold` until it is asked for.
        failure: The replica's own words when one has failed, else empty.
        text: One line for people who wait.
    """

    ready: bool
    failure: str
    text: str


def readiness(status: Mapping[str, Any], generation: Generation, version: int, slots: int | None = None) -> Readiness:
    """Judge a generation by what the router and the agents report.

    Args:
        status: `RouterAdmin.status()`.
        generation: Which one.
        version: The table version that placed it; an agent that has not applied it yet speaks of the past.
        slots: How many slots of the pool its endpoint takes; None = all.
    """
    agents = [row for row in _rows(status, "agents") if row.get("pool") == generation.pool]
    if not agents:
        return Readiness(False, "", f"pool {generation.pool!r} has no agent")
    current = [row for row in agents if int(row.get("version", 0)) >= version]
    replicas = [found for row in current for found in _replicas(row, generation)]
    for replica in replicas:
        if replica.get("state") == "failed" and _failures(replica) >= _FAILURES:
            return Readiness(False, _failure(replica), "a replica failed")
    models = [replica for replica in replicas if replica.get("stage", "model") == "model"]
    ready = sum(replica.get("state") == "ready" or replica.get("proven") is True for replica in models)
    found = counters(status, generation)
    reachable = found.get("ready", 0) + found.get("cold", 0)
    wanted = len(agents) if slots is None else min(slots, len(agents))
    text = f"{min(ready, reachable)} of {wanted} replicas ready in pool {generation.pool!r}"
    return Readiness(len(current) == len(agents) and min(ready, reachable) >= wanted, "", text)


def counters(status: Mapping[str, Any], generation: Generation) -> Mapping[str, int]:
    """Return the router's `ready`, `queued` and `in_flight` of a generation; empty when it does not know it."""
    for row in _rows(status, "generations"):
        if row.get("endpoint") == generation.endpoint and row.get("generation") == generation.number:
            return row
    return {}


def busy(status: Mapping[str, Any], generation: Generation) -> int:
    """Return how many requests a generation still holds."""
    row = counters(status, generation)
    return int(row.get("queued", 0)) + int(row.get("in_flight", 0))


def _replicas(agent: Mapping[str, Any], generation: Generation) -> list[Mapping[str, Any]]:
    wanted = (generation.endpoint, generation.bundle)
    return [row for row in _rows(agent, "replicas") if (row.get("endpoint"), row.get("bundle")) == wanted]


def _failures(replica: Mapping[str, Any]) -> int:
    """Restarts say nothing of this generation: the same build may have been placed there, and been ended, before."""
    return int(replica.get("failures", 0))


def _failure(replica: Mapping[str, Any]) -> str:
    said = str(replica.get("error") or "the replica ended without a word")
    log: object = replica.get("log_tail") or ""
    lines = cast("list[object]", log) if isinstance(log, list) else str(log).splitlines()
    tail = "\n".join(f"    {line}" for line in lines[-_LOG_LINES:])
    return f"{said}\n  last lines of its log:\n{tail}" if tail else said


def _rows(body: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    return cast("Sequence[Mapping[str, Any]]", body.get(name) or ())
