"""Where a rollout goes next: a function of its row, its strategy and what was seen. Pure; the controller carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from orchestrator.ledger import Rollout, RolloutState
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_steps import Analysis, Pause, SetHeaderRoute, SetMirror, SetWeight

if TYPE_CHECKING:
    from orchestrator.rollout.evidence.judgement import Judgement

Json = Mapping[str, Any]
Then = Literal["stay", "lose", "live"]

ENTERED: Final = "entered"
"""Note: the step whose weight, mirror and headers the router has been given."""
STEP_SEQ: Final = "step_seq"
"""Note: the last row of evidence before the step began."""
BACKGROUND_SEQ: Final = "background_seq"
"""Note: the last row of evidence before the analysis beside the steps began."""
OBEYED: Final = "obeyed"
"""Note: the intent whose effect is in this row; it is only left to be taken off the row."""
_EXTENDED: Final = "extended"
_SKIPPED: Final = "skipped"
_OF_STEP: Final = frozenset({ENTERED, STEP_SEQ, _EXTENDED})


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen at one look.

    Attributes:
        now: Unix seconds.
        bundle: The canary's; an approval names what it approves.
        seq: The last row of evidence.
        requests: Of users, that the canary has answered since the step began.
        step: Judgement of the step, where it is an analysis.
        background: Judgement of the analysis beside the steps, once it watches.
        kill: Why the rollout must end at once; empty when nothing says so.
        wish: Who has left the operator's wish, and why.
    """

    now: float
    bundle: str = ""
    seq: int = 0
    requests: int = 0
    step: Judgement | None = None
    background: Judgement | None = None
    kill: str = ""
    wish: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """What to do: keep `row`, and then stay, take the canary back because of `error`, or make it live."""

    row: Rollout
    then: Then = "stay"
    error: Json | None = None


def decide(row: Rollout, strategy: Strategy, facts: Facts) -> Move:
    """Return the next move of an active rollout whose step has been entered."""
    row = replace(row, verdict=_verdict(row, facts))
    if row.intent and row.intent != row.notes.get(OBEYED):
        return _obey(row, strategy, facts)
    rejected = next((a for a in row.approvals if a["decision"] == "reject" and a["bundle"] == facts.bundle), None)
    if rejected is not None:
        why = f"rejected by {rejected['identity']}"
        return _lose(
            row, "rejected", f"{why}: {rejected['reason']}" if rejected.get("reason") else why, automatic=False
        )
    if facts.kill:
        return _lose(row, "kill", facts.kill)
    for judgement in (facts.background, facts.step):
        if judgement is not None and judgement.state == "failed" and not _held_for_failure(row):
            return _failed(row, strategy, facts, judgement)
    if row.state == RolloutState.PAUSED and not _may_go_on(row, strategy, facts):
        return Move(row)
    return _go(replace(row, state=RolloutState.PROGRESSING), strategy, facts)


def missing_approvals(row: Rollout, strategy: Strategy, bundle: str) -> int:
    """Return how many people must still approve: distinct identities, without the one who asked for the rollout."""
    given = [a for a in row.approvals if a.get("by_token") or not strategy.by_token]
    said = {a["identity"] for a in given if a["decision"] == "approve" and a["bundle"] == bundle}
    return max(0, strategy.approvals - len(said - {row.actor}))


def skipped(row: Rollout) -> bool:
    """Tell whether an operator has skipped the rest of the steps."""
    return bool(row.notes.get(_SKIPPED))


def _obey(row: Rollout, strategy: Strategy, facts: Facts) -> Move:
    row = replace(row, notes={**row.notes, OBEYED: row.intent})
    paused = row.state == RolloutState.PAUSED
    if row.intent == "abort":
        return _lose(row, "operator", f"aborted by {facts.wish or 'an operator'}", automatic=False)
    if row.intent == "pause" and not paused:
        return _hold(row, "operator", f"paused by {facts.wish or 'an operator'}", facts)
    if row.intent == "promote" and row.step < len(strategy.steps):
        row = _at(row, len(strategy.steps), facts.now)
        return Move(replace(row, notes={**row.notes, _SKIPPED: True}))
    if row.intent == "promote":
        return Move(replace(row, state=RolloutState.PROGRESSING, waiting=None, notes={**row.notes, _SKIPPED: True}))
    if row.intent == "resume" and paused:
        return Move(_resumed(row, facts))
    return Move(row)


def _resumed(row: Rollout, facts: Facts) -> Rollout:
    waiting = row.waiting or {}
    if waiting.get("kind") == "approval":
        return row  # only the approvals end it
    if waiting.get("gate"):
        return _at(row, row.step + 1, facts.now)
    row = replace(row, state=RolloutState.PROGRESSING, waiting=None, progressed_at=facts.now)
    if waiting.get("failed") or waiting.get("kind") == "inconclusive":
        # A person has looked at it: the step gets its whole time again, and what has failed is counted anew.
        notes = {name: value for name, value in row.notes.items() if name != _EXTENDED}
        if waiting.get("failed"):
            notes |= {STEP_SEQ: facts.seq} | ({BACKGROUND_SEQ: facts.seq} if BACKGROUND_SEQ in notes else {})
        return replace(row, step_started_at=facts.now, notes=notes)
    return replace(row, step_started_at=row.step_started_at + max(0.0, facts.now - float(waiting["since"])))


def _may_go_on(row: Rollout, strategy: Strategy, facts: Facts) -> bool:
    """A paused rollout goes on by itself only when the approvals that it waits for are there."""
    waits = (row.waiting or {}).get("kind") == "approval"
    return waits and not missing_approvals(row, strategy, facts.bundle)


def _go(row: Rollout, strategy: Strategy, facts: Facts) -> Move:
    if row.step >= len(strategy.steps):
        return _last(row, strategy, facts)
    match step := strategy.steps[row.step]:
        case SetWeight():
            # All requests are what "live" means to users: whoever must approve does so before.
            if step.weight == 100 and (held := _approval(row, strategy, facts)) is not None:
                return held
            return Move(_at(replace(row, weight=step.weight), row.step + 1, facts.now))
        case SetMirror():
            return Move(_at(replace(row, mirror=step.percent), row.step + 1, facts.now))
        case SetHeaderRoute():
            routes = tuple({"name": m.header, "how": m.how, "value": m.value} for m in step.matches)
            return Move(_at(replace(row, headers=routes), row.step + 1, facts.now))
        case Pause():
            return _pause(row, strategy, step, facts)
        case Analysis():
            if facts.step is not None and facts.step.state == "passed":
                return Move(_at(row, row.step + 1, facts.now))
            return _timed(row, strategy, facts, f"step {row.step + 1}: the analysis has not passed yet")


def _pause(row: Rollout, strategy: Strategy, step: Pause, facts: Facts) -> Move:
    if step.for_a_person:
        text = f"step {row.step + 1} waits for a person"
        return _hold(row, "operator", text, facts, gate=True)
    left_s = row.step_started_at + step.duration_s - facts.now if step.duration_s else 0.0
    wanted = step.min_requests or 0
    if left_s <= 0 and facts.requests >= wanted:
        return Move(_at(row, row.step + 1, facts.now))
    if left_s > 0:
        return Move(_waits(row, "duration", f"step {row.step + 1}: a pause of {step.duration_s:g} s", facts))
    found = f"step {row.step + 1}: the canary has answered {facts.requests} of {wanted} requests"
    return _timed(row, strategy, facts, found, after_s=step.duration_s or 0.0)


def _last(row: Rollout, strategy: Strategy, facts: Facts) -> Move:
    if strategy.analysis is not None and row.stable and not skipped(row):
        state = facts.background.state if facts.background is not None else "inconclusive"
        if state != "passed":
            return _timed(row, strategy, facts, "all steps are done; the analysis beside them has not passed yet")
    return _approval(row, strategy, facts) or Move(row, "live")


def _approval(row: Rollout, strategy: Strategy, facts: Facts) -> Move | None:
    missing = missing_approvals(row, strategy, facts.bundle)
    if not missing:
        return None
    who = "1 more approval" if missing == 1 else f"{missing} more approvals"
    return _hold(row, "approval", f"{who} of others than {row.actor}", facts)


def _timed(row: Rollout, strategy: Strategy, facts: Facts, text: str, *, after_s: float = 0.0) -> Move:
    """Wait for evidence, as often as the strategy extends the step's time; then it is inconclusive."""
    extended = int(row.notes.get(_EXTENDED, 0))
    spent_s = facts.now - row.step_started_at - after_s
    if spent_s < strategy.progress_deadline_s * (1 + extended):
        return Move(_waits(row, "evidence", text, facts))
    if extended < strategy.extend:
        row = replace(row, notes={**row.notes, _EXTENDED: extended + 1})
        return Move(_waits(row, "evidence", text, facts))
    if strategy.then == "rollback":
        return _lose(row, "inconclusive", f"inconclusive: {text}")
    return _hold(row, "inconclusive", text, facts)


def _failed(row: Rollout, strategy: Strategy, facts: Facts, judgement: Judgement) -> Move:
    row = replace(row, verdict=judgement.to_json())
    texts = [metric.text for metric in judgement.metrics if metric.state == "failed"]
    why = "; ".join(texts) or "the analysis failed"
    if strategy.on_failure == "rollback":
        return _lose(row, "analysis", why)
    return _hold(row, "operator", f"the analysis failed: {why}", facts, failed=True)


def _held_for_failure(row: Rollout) -> bool:
    return row.state == RolloutState.PAUSED and bool((row.waiting or {}).get("failed"))


def _lose(row: Rollout, kind: str, text: str, *, automatic: bool = True) -> Move:
    error = {"error": "GateError", "kind": kind, "message": text, "automatic": automatic}
    return Move(row, "lose", error)


def _hold(row: Rollout, kind: str, text: str, facts: Facts, **more: bool) -> Move:
    held = _waits(replace(row, state=RolloutState.PAUSED), kind, text, facts)
    return Move(replace(held, waiting={**(held.waiting or {}), **more}))


def _waits(row: Rollout, kind: str, text: str, facts: Facts) -> Rollout:
    was = row.waiting or {}
    since = was["since"] if was.get("kind") == kind and "since" in was else facts.now
    return replace(row, waiting={"kind": kind, "text": text, "since": since})


def _at(row: Rollout, step: int, now: float) -> Rollout:
    notes = {name: value for name, value in row.notes.items() if name not in _OF_STEP}
    fields: dict[str, Any] = {"step": step, "step_started_at": now, "progressed_at": now, "notes": notes}
    return replace(row, state=RolloutState.PROGRESSING, waiting=None, **fields)


def _verdict(row: Rollout, facts: Facts) -> Json | None:
    judgement = facts.step or facts.background
    return row.verdict if judgement is None else judgement.to_json()
