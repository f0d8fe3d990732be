"""Looking at rollouts: what is under way and what it waits for, what has happened, and what a strategy asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.app.rollout_lead import leader
from orchestrator.app.rollout_projection import projection_state
from orchestrator.app.rollout_snapshots import move_state
from orchestrator.app.rollouts import known_endpoint
from orchestrator.app.wiring import Workplace
from orchestrator.ledger import Generation, GenerationState, Ledger, Rollout
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_text import step_text, strategy_text
from orchestrator.rollout.walk import missing_approvals

if TYPE_CHECKING:
    from collections.abc import Sequence


def status(workplace: Workplace, endpoint: str | None = None) -> dict[str, Any]:
    """Return what every endpoint, or one of them, is doing.

    Returns:
        `{endpoints: [{endpoint, live, bundle, pool, device, rollout, projection}]}`; `rollout` is None where none is under way.

    Raises:
        UsageError: There is no such endpoint.
    """
    with workplace.look_into_ledger() as ledger:
        if endpoint is not None:
            known_endpoint(ledger, endpoint)
        names = ledger.generations.endpoints() if endpoint is None else (endpoint,)
        return {"endpoints": [_endpoint(workplace, ledger, name) for name in names]}


def _endpoint(workplace: Workplace, ledger: Ledger, name: str) -> dict[str, Any]:
    known = ledger.generations.list(name)
    live = next((g for g in known if g.state == GenerationState.LIVE), None)
    row = ledger.rollouts.active(name)
    shown = live or known[-1]
    return {
        "endpoint": name,
        "live": live.number if live is not None else 0,
        "bundle": live.bundle if live is not None else "",
        "pool": shown.pool,
        "device": shown.device,
        "rollout": _under_way(ledger, row) if row is not None else None,
        "projection": projection_state(workplace, ledger, name),
    }


def _under_way(ledger: Ledger, row: Rollout) -> dict[str, Any]:
    strategy = Strategy.from_json(row.strategy)
    canary = ledger.generations.get(row.endpoint, row.generation)
    bundle = canary.bundle if canary is not None else ""
    led = leader(ledger, row.endpoint)
    missing = missing_approvals(row, strategy, bundle)
    here = strategy.steps[row.step] if row.step < len(strategy.steps) else None
    return {
        "generation": row.generation,
        "stable": row.stable,
        "bundle": bundle,
        "state": row.state.value,
        "step": row.step,
        "steps": len(strategy.steps),
        "doing": step_text(here) if here is not None else "all steps are done",
        "weight": row.weight,
        "mirror": row.mirror,
        "headers": [dict(header) for header in row.headers],
        "waiting": _waiting(row, missing),
        "intent": row.intent,
        "verdict": dict(row.verdict) if row.verdict else None,
        "approvals": {"given": [dict(a) for a in row.approvals], "missing": missing},
        "actor": row.actor,
        "reason": row.reason,
        "started_at": row.started_at,
        "led_by": None if led is None else {"user": led.owner.user, "host": led.owner.host, "pid": led.owner.pid},
    }


def _waiting(row: Rollout, missing: int) -> dict[str, Any] | None:
    """Return what a rollout waits for; the controller's words, but where approvals have come since that it has not seen."""
    if row.waiting is None or row.waiting.get("kind") != "approval" or missing:
        return dict(row.waiting) if row.waiting else None
    who = ", ".join(dict.fromkeys(a["identity"] for a in row.approvals if a["decision"] == "approve"))
    return {**row.waiting, "text": f"nothing: approved by {who}; it goes on when it is driven"}


def history(workplace: Workplace, endpoint: str) -> dict[str, Any]:
    """Return every generation of an endpoint, oldest first, with how it came to be.

    Returns:
        `{endpoint, generations: [{generation, kind, state, outcome, bundle, pool, actor, reason, created_at, error, rollout,
        projection}]}`; `rollout` holds strategy, verdict, metrics, approvals; None where all requests were moved at once.

    Raises:
        UsageError: There is no such endpoint.
    """
    with workplace.look_into_ledger() as ledger:
        known = known_endpoint(ledger, endpoint)
        rows = {row.generation: row for row in ledger.rollouts.list(endpoint)}
        return {
            "endpoint": endpoint,
            "generations": [_past(workplace, ledger, each, rows.get(each.number)) for each in known],
        }


def _past(workplace: Workplace, ledger: Ledger, generation: Generation, row: Rollout | None) -> dict[str, Any]:
    error = (row.error if row is not None else None) or generation.error
    return {
        "generation": generation.number,
        "kind": generation.kind,
        "state": generation.state.value,
        "outcome": move_state(generation, row),
        "bundle": generation.bundle,
        "pool": generation.pool,
        "device": generation.device,
        "actor": generation.actor,
        "reason": generation.reason,
        "created_at": generation.created_at,
        "error": str(error.get("message", "")) if error else "",
        "rollout": None if row is None else _walked(ledger, row),
        "projection": projection_state(workplace, ledger, generation.endpoint, generation.number),
    }


def _walked(ledger: Ledger, row: Rollout) -> dict[str, Any]:
    strategy = Strategy.from_json(row.strategy)
    return {
        "strategy": strategy_text(strategy),
        "strategy_digest": strategy.digest,
        "stable": row.stable,
        "state": row.state.value,
        "step": row.step,
        "steps": len(strategy.steps),
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "verdict": str((row.verdict or {}).get("state", "")),
        "metrics": metrics_of(row.verdict),
        "approvals": [dict(approval) for approval in row.approvals],
        "rows": len(ledger.rollouts.evidence(row.endpoint, row.generation)),
    }


def metrics_of(verdict: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the summary of a judgement: per test its state, its numbers and its sentence."""
    rows: Sequence[Mapping[str, Any]] = (verdict or {}).get("metrics") or ()
    names = ("name", "state", "canary_n", "stable_n", "canary_rate", "stable_rate", "upper", "margin", "needs", "text")
    return [{name: row.get(name) for name in names} for row in rows]


def explain(workplace: Workplace, endpoint: str, rps: float | None = None) -> dict[str, Any]:
    """Return what the rollout that is under way, else the endpoint's last strategy, asks step by step, and what it waits for.

    Args:
        workplace: Whose ledger.
        endpoint: Its name.
        rps: Requests of users per second; without it the earliest end is only known where nothing counts requests.

    Returns:
        `{endpoint, generation, strategy, steps: [{number, text, weight, mirror, needs, earliest_s}], earliest_end_s, now}`;
        `number` 0 is the analysis beside the steps; see `rollout.evidence.explain`.

    Raises:
        UsageError: There is no such endpoint.
    """
    from orchestrator.app.strategies import last_strategy
    from orchestrator.rollout.evidence.explain import explain as reckon

    with workplace.look_into_ledger() as ledger:
        known_endpoint(ledger, endpoint)
        row = ledger.rollouts.active(endpoint)
        strategy = (
            Strategy.from_json(row.strategy) if row is not None else last_strategy(ledger, endpoint) or Strategy()
        )
        found = reckon(strategy, rps=rps).to_json()
        return {
            "endpoint": endpoint,
            "generation": row.generation if row is not None else 0,
            "strategy": strategy_text(strategy),
            "steps": [_asked(strategy, each) for each in found["steps"]],
            "earliest_end_s": found["earliest_end_s"],
            "now": _under_way(ledger, row) if row is not None else None,
        }


def _asked(strategy: Strategy, need: Mapping[str, Any]) -> dict[str, Any]:
    number = int(need["step"])
    text = step_text(strategy.steps[number]) if number >= 0 else "beside the steps"
    kept = {name: value for name, value in need.items() if name != "step"}
    return {"number": number + 1, "text": text, **kept}
