"""What people are told of a rollout: a line per change, and how a command ends that has driven one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.core.errors import GateError, Waiting
from orchestrator.ledger import Rollout, RolloutState
from orchestrator.rollout.strategy import Strategy


def line(row: Rollout, strategy: Strategy) -> str:
    """Return where a rollout stands."""
    done = min(row.step, len(strategy.steps))
    where = f"generation {row.generation}: {done} of {len(strategy.steps)} steps, {row.weight} %"
    waiting: Mapping[str, Any] = row.waiting or {}
    return f"{where}; {waiting['text']}" if waiting.get("text") else where


def waiting_for(row: Rollout) -> Waiting:
    """Return what the foreground command ends with when a rollout is paused; it names the command that goes on."""
    waiting: Mapping[str, Any] = row.waiting or {"kind": "operator", "text": "it is paused"}
    kind = str(waiting["kind"])
    then = "then repeat this command"
    hints = {
        "approval": f"`orchestrate rollout approve --endpoint {row.endpoint}`, {then}",
        "inconclusive": f"send it more requests and `orchestrate rollout resume --endpoint {row.endpoint}`, {then}; or abort it",
    }
    hint = hints.get(kind, f"`orchestrate rollout resume --endpoint {row.endpoint}`, {then}; or abort it")
    details = {"endpoint": row.endpoint, "generation": row.generation, "waiting": dict(waiting), "weight": row.weight}
    return Waiting(
        f"the rollout of generation {row.generation} of {row.endpoint!r} waits: {waiting['text']}",
        hint=hint,
        details=details,
    )


def outcome(row: Rollout) -> Rollout:
    """Return a rollout that has succeeded.

    Raises:
        GateError: The canary was taken back.
    """
    if row.state == RolloutState.SUCCEEDED:
        return row
    error: Mapping[str, Any] = row.error or {}
    stays = f"generation {row.stable} has all requests" if row.stable else "nothing is live"
    raise GateError(
        f"generation {row.generation} of {row.endpoint!r} was taken back: {error.get('message', 'aborted')}",
        hint=f"{stays}; look at `orchestrate rollout history --endpoint {row.endpoint}`",
        details={
            "endpoint": row.endpoint,
            "generation": row.generation,
            "rollout": dict(error),
            "verdict": row.verdict,
        },
    )
