"""Rollouts in the ledger: one active per endpoint, fenced writes, wishes that are not lost, and a rollback in one stroke."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from support.ledger_samples import request

from orchestrator.core.errors import Conflict, LedgerError
from orchestrator.ledger import Generation, GenerationState, Lease, Ledger, Owner, Rollout, RolloutState

ENDPOINT = "digits"


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with Ledger.open(ledger_url) as opened:
        yield opened


def lease_of(ledger: Ledger, *, seize: bool = False) -> Lease:
    return ledger.leases.acquire(f"endpoint/{ENDPOINT}", Owner.here("test"), seize=seize)


def live(ledger: Ledger, bundle: str, lease: Lease, expected: int = 0) -> Generation:
    made = ledger.generations.append(request(bundle, expected=expected), lease)
    return ledger.generations.set_state(
        ENDPOINT, made.number, GenerationState.LIVE, lease, actor="ada", former=GenerationState.WARM
    )


def canary(ledger: Ledger, lease: Lease) -> Rollout:
    """Bring generation 1 live, stage generation 2, and begin its rollout."""
    live(ledger, "1", lease)
    staged = ledger.generations.append(request("2", expected=1), lease)
    rollout = Rollout(
        endpoint=ENDPOINT,
        generation=staged.number,
        site="local",
        pool="edge",
        stable=1,
        strategy={"steps": [1, 2]},
        actor="ada",
    )
    return ledger.rollouts.begin(rollout, lease)


def states(ledger: Ledger) -> list[str]:
    return [g.state.value for g in ledger.generations.list(ENDPOINT)]


def test_a_rollout_walks_and_ends_and_never_moves_again(ledger: Ledger) -> None:
    lease = lease_of(ledger)
    begun = canary(ledger, lease)
    assert ledger.rollouts.begin(replace(begun, reason="another"), lease) == begun
    moved = ledger.rollouts.save(replace(begun, step=1, weight=10, headers=({"name": "x"},)), lease)
    assert (moved.step, moved.weight, moved.started_at) == (1, 10, begun.started_at)
    assert moved.step_started_at >= begun.step_started_at
    assert ledger.generations.stamp("local", lease).rollouts == {ENDPOINT: moved}
    assert ledger.generations.stamp("other", lease).rollouts == {}
    over = ledger.rollouts.save(replace(moved, state=RolloutState.SUCCEEDED), lease)
    assert over.ended_at is not None
    assert ledger.rollouts.active(ENDPOINT) is None
    assert ledger.rollouts.save(over, lease) == over
    with pytest.raises(Conflict, match="has succeeded"):
        ledger.rollouts.save(replace(over, weight=50), lease)
    assert ledger.rollouts.list(ENDPOINT) == (over,)
    actions = [row.action for row in ledger.audit.rows() if row.action.startswith("rollout")]
    assert actions == ["rollout.begin", "rollout.step", "rollout.succeeded"]
    ledger.audit.verify()


def test_an_operators_wish_outlives_the_controllers_writes(ledger: Ledger) -> None:
    lease = lease_of(ledger)
    begun = canary(ledger, lease)
    asked = ledger.rollouts.ask(ENDPOINT, "pause", actor="bob", generation=begun.generation)
    assert ledger.rollouts.ask(ENDPOINT, "pause", actor="bob") == asked
    kept = ledger.rollouts.save(replace(begun, weight=20), lease)  # from what it read before
    assert kept.intent == "pause"
    ledger.rollouts.ask(ENDPOINT, "abort", actor="bob")
    ledger.rollouts.answered(ENDPOINT, begun.generation, "pause", lease)  # too late: another wish has come
    found = ledger.rollouts.active(ENDPOINT)
    assert found is not None
    assert found.intent == "abort"
    ledger.rollouts.answered(ENDPOINT, begun.generation, "abort", lease)
    with pytest.raises(Conflict, match="generation 2 is being rolled out"):
        ledger.rollouts.ask(ENDPOINT, "abort", actor="bob", generation=7)
    ledger.rollouts.save(replace(found, state=RolloutState.ABORTED), lease)
    with pytest.raises(Conflict, match="nothing is being rolled out"):
        ledger.rollouts.ask(ENDPOINT, "pause", actor="bob")


def test_approvals_are_one_per_identity_and_step(ledger: Ledger) -> None:
    lease = lease_of(ledger)
    begun = canary(ledger, lease)
    row = {"identity": "bob", "decision": "approve", "step": 1, "bundle": "sha256:2", "reason": ""}
    once = ledger.rollouts.decide(ENDPOINT, 2, row, actor="bob")
    assert ledger.rollouts.decide(ENDPOINT, 2, row, actor="bob") == once
    with pytest.raises(Conflict, match="already said 'approve'"):
        ledger.rollouts.decide(ENDPOINT, 2, {**row, "decision": "reject"}, actor="bob")
    twice = ledger.rollouts.decide(ENDPOINT, 2, {**row, "identity": "eve"}, actor="eve")
    assert [a["identity"] for a in twice.approvals] == ["bob", "eve"]
    assert len(ledger.rollouts.save(replace(begun, step=1), lease).approvals) == 2
    with pytest.raises(LedgerError, match="has no rollout"):
        ledger.rollouts.decide(ENDPOINT, 9, row, actor="bob")


def test_evidence_is_appended_and_fenced(ledger: Ledger) -> None:
    old = lease_of(ledger)
    canary(ledger, old)
    ledger.rollouts.add_evidence(ENDPOINT, 2, [{"n": 1}, {"n": 2}], old)
    new = lease_of(ledger, seize=True)
    for write in (
        lambda: ledger.rollouts.add_evidence(ENDPOINT, 2, [{"n": 3}], old),
        lambda: ledger.rollouts.save(replace(canary_of(ledger), weight=50), old),
        lambda: ledger.rollouts.answered(ENDPOINT, 2, "pause", old),
    ):
        with pytest.raises(Conflict, match="no longer ours"):
            write()
    ledger.rollouts.add_evidence(ENDPOINT, 2, [{"n": 3}], new)
    assert [(row.seq, row.body["n"]) for row in ledger.rollouts.evidence(ENDPOINT, 2)] == [(1, 1), (2, 2), (3, 3)]
    assert [row.seq for row in ledger.rollouts.evidence(ENDPOINT, 2, after=1, limit=1)] == [2]


def canary_of(ledger: Ledger) -> Rollout:
    found = ledger.rollouts.active(ENDPOINT)
    assert found is not None
    return found


def test_a_rollback_is_one_stroke(ledger: Ledger) -> None:
    lease = lease_of(ledger)
    canary(ledger, lease)
    seized = lease_of(ledger, seize=True)
    asked = replace(request("1", expected=1), kind="rollback", request_id="back", reason="too slow")
    back = ledger.generations.roll_back(asked, seized)
    assert (back.number, back.state, back.kind) == (3, GenerationState.LIVE, "rollback")
    assert states(ledger) == ["draining", "failed", "live"]
    ended = ledger.rollouts.get(ENDPOINT, 2)
    assert ended is not None
    assert (ended.state, ended.weight) == (RolloutState.ABORTED, 0)
    assert ledger.generations.roll_back(asked, seized) == back  # the same request, once more
    with pytest.raises(Conflict, match="is at generation 3, not 1"):
        ledger.generations.roll_back(replace(asked, request_id="other"), seized)
    with pytest.raises(Conflict, match="no longer ours"):
        ledger.generations.roll_back(replace(asked, request_id="old", expected=3), lease)
    ledger.audit.verify()


def test_one_generation_at_most_is_warm(ledger: Ledger) -> None:
    lease = lease_of(ledger)
    live(ledger, "1", lease)
    live(ledger, "2", lease, expected=1)
    assert states(ledger) == ["warm", "live"]
    live(ledger, "3", lease, expected=2)
    assert states(ledger) == ["draining", "warm", "live"]


def test_a_canary_that_fails_ends_its_rollout(ledger: Ledger) -> None:
    lease = lease_of(ledger)
    canary(ledger, lease)
    ledger.generations.set_state(ENDPOINT, 2, GenerationState.FAILED, lease, actor="ada", error={"error": "Bad"})
    ended = ledger.rollouts.get(ENDPOINT, 2)
    assert ended is not None
    assert (ended.state, ended.error) == (RolloutState.ABORTED, {"error": "Bad"})
    assert ledger.rollouts.all_active() == ()
