from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from support.ledger_samples import request, rollout

from orchestrator.core.errors import Conflict, IntegrityError, LedgerError
from orchestrator.ledger import GenerationState, Lease, Ledger, Owner, RolloutState
from orchestrator.ledger.audit import verify_lines
from orchestrator.ledger.database import Database

LIVE, WARM, FAILED = GenerationState.LIVE, GenerationState.WARM, GenerationState.FAILED


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with Ledger.open(ledger_url) as opened:
        yield opened


@pytest.fixture
def lease(ledger: Ledger) -> Lease:
    """Generation 1 is live, generation 2 staged."""
    taken = ledger.leases.acquire("endpoint/digits", Owner.here("test"))
    ledger.generations.append(request("1"), taken)
    go_live(ledger, taken, 1)
    ledger.generations.append(request("2", expected=1), taken)
    return taken


def go_live(ledger: Ledger, lease: Lease, number: int, former: GenerationState = WARM) -> None:
    ledger.generations.set_state("digits", number, LIVE, lease, actor="ada", former=former)


def states(ledger: Ledger) -> dict[int, str]:
    return {g.number: str(g.state) for g in ledger.generations.list("digits")}


def actions(ledger: Ledger) -> list[str]:
    return [row.action for row in ledger.audit.rows()]


def test_a_rollout_begins_once_and_keeps_what_was_fixed(ledger: Ledger, lease: Lease) -> None:
    begun = ledger.rollouts.begin(rollout(), lease)
    assert begun.started_at == begun.step_started_at == begun.progressed_at > 0
    assert ledger.rollouts.begin(rollout(reason="again"), lease) == begun
    moved = ledger.rollouts.save(replace(begun, weight=10, stable=7, pool="other", notes={"cursor": 3}), lease)
    assert (moved.weight, moved.stable, moved.pool, moved.notes) == (10, 1, "edge", {"cursor": 3})
    assert moved.step_started_at == begun.step_started_at
    stepped = ledger.rollouts.save(replace(moved, step=1, headers=({"name": "x-a"},)), lease)
    assert stepped.step_started_at >= moved.step_started_at
    assert ledger.rollouts.get("digits", 2) == ledger.rollouts.active("digits") == stepped
    assert ledger.rollouts.all_active("local") == ledger.rollouts.list("digits") == (stepped,)
    assert ledger.rollouts.all_active("elsewhere") == ()
    assert ledger.generations.stamp("local").rollouts == {"digits": stepped}
    assert actions(ledger)[-3:] == ["rollout.begin", "rollout.step", "rollout.step"]


def test_an_ended_rollout_never_changes(ledger: Ledger, lease: Lease) -> None:
    begun = ledger.rollouts.begin(rollout(), lease)
    ended = ledger.rollouts.save(replace(begun, state=RolloutState.SUCCEEDED, verdict={"state": "passed"}), lease)
    assert ended.ended_at is not None
    assert ledger.rollouts.save(ended, lease) == ended
    with pytest.raises(Conflict, match="has succeeded"):
        ledger.rollouts.save(replace(ended, weight=50), lease)
    with pytest.raises(Conflict, match="has succeeded"):
        ledger.rollouts.decide("digits", 2, {"identity": "bob", "decision": "approve", "step": 1}, actor="bob")
    with pytest.raises(Conflict, match="nothing is being rolled out"):
        ledger.rollouts.ask("digits", "pause", actor="bob")
    assert ledger.rollouts.active("digits") is None
    assert ledger.generations.stamp("local").rollouts == {}
    with pytest.raises(LedgerError, match=r"generation 9 .* has no rollout"):
        ledger.rollouts.save(replace(ended, generation=9), lease)


def test_a_wish_stays_until_that_wish_is_answered(ledger: Ledger, lease: Lease) -> None:
    begun = ledger.rollouts.begin(rollout(), lease)
    assert ledger.rollouts.ask("digits", "pause", actor="bob").intent == "pause"
    count = len(actions(ledger))
    ledger.rollouts.ask("digits", "pause", actor="bob")
    assert len(actions(ledger)) == count
    assert ledger.rollouts.save(replace(begun, weight=10), lease).intent == "pause"
    ledger.rollouts.ask("digits", "abort", actor="bob", generation=2)
    ledger.rollouts.answered("digits", 2, "pause", lease)
    found = ledger.rollouts.active("digits")
    assert found is not None
    assert found.intent == "abort"
    ledger.rollouts.answered("digits", 2, "abort", lease)
    assert ledger.rollouts.active("digits") == replace(found, intent="")
    with pytest.raises(Conflict, match="generation 2 is being rolled out") as caught:
        ledger.rollouts.ask("digits", "abort", actor="bob", generation=1)
    assert caught.value.details["active"] == 2


def test_no_wish_takes_an_abort_back(ledger: Ledger, lease: Lease) -> None:
    ledger.rollouts.begin(rollout(), lease)
    ledger.rollouts.ask("digits", "abort", actor="ada")
    for intent in ("pause", "resume", "promote"):
        with pytest.raises(Conflict, match="is being aborted"):
            ledger.rollouts.ask("digits", intent, actor="bob")  # type: ignore[arg-type]
    assert ledger.rollouts.ask("digits", "abort", actor="bob").intent == "abort"


def test_one_decision_of_each_identity_per_step(ledger: Ledger, lease: Lease) -> None:
    begun = ledger.rollouts.begin(rollout(), lease)
    said = {"identity": "bob", "decision": "approve", "step": 1, "bundle": "sha256:2", "reason": ""}
    once = ledger.rollouts.decide("digits", 2, said, actor="bob")
    assert ledger.rollouts.decide("digits", 2, said, actor="bob") == once
    with pytest.raises(Conflict, match="has already said 'approve'"):
        ledger.rollouts.decide("digits", 2, {**said, "decision": "reject"}, actor="bob")
    ledger.rollouts.decide("digits", 2, {**said, "identity": "cleo"}, actor="cleo")
    saved = ledger.rollouts.save(replace(begun, weight=5), lease)
    assert [(a["identity"], a["decision"]) for a in saved.approvals] == [("bob", "approve"), ("cleo", "approve")]
    assert actions(ledger).count("rollout.approve") == 2


def test_evidence_is_numbered_and_only_grows(ledger: Ledger, lease: Lease) -> None:
    ledger.rollouts.begin(rollout(), lease)
    ledger.rollouts.add_evidence("digits", 2, [{"n": 1}, {"n": 2.5}], lease)
    ledger.rollouts.add_evidence("digits", 2, [], lease)
    ledger.rollouts.add_evidence("digits", 2, [{"n": 3}], lease)
    found = ledger.rollouts.evidence("digits", 2)
    assert [(row.seq, row.body) for row in found] == [(1, {"n": 1}), (2, {"n": 2.5}), (3, {"n": 3})]
    assert [row.seq for row in ledger.rollouts.evidence("digits", 2, after=1, limit=1)] == [2]
    assert ledger.rollouts.evidence("digits", 3) == ()


def test_a_new_promotion_waits_for_the_rollout_under_way(ledger: Ledger, lease: Lease) -> None:
    begun = ledger.rollouts.begin(rollout(), lease)
    with pytest.raises(Conflict, match="generation 2 of 'digits' is being rolled out") as caught:
        ledger.generations.append(request("3", expected=1), lease)
    assert caught.value.details["staged"] == 2
    go_live(ledger, lease, 2)
    with pytest.raises(Conflict, match="the rollout of generation 2") as caught:
        ledger.generations.append(request("3", expected=2), lease)
    assert caught.value.details["rollout"] == 2
    with pytest.raises(Conflict, match="being rolled out by ada"):
        ledger.rollouts.begin(rollout(3, stable=2), lease)
    ledger.rollouts.save(replace(begun, state=RolloutState.SUCCEEDED), lease)
    assert ledger.generations.append(request("3", expected=2), lease).number == 3


def test_a_failed_canary_ends_its_rollout(ledger: Ledger, lease: Lease) -> None:
    ledger.rollouts.begin(rollout(weight=10, headers=({"name": "x-a"},)), lease)
    ledger.generations.set_state("digits", 2, FAILED, lease, actor="ada", error={"error": "GateError"})
    ended = ledger.rollouts.get("digits", 2)
    assert ended is not None
    assert (ended.state, ended.weight, ended.headers, ended.error) == ("aborted", 0, (), {"error": "GateError"})
    assert actions(ledger)[-2:] == ["rollout.aborted", "generation.failed"]


def test_what_has_failed_or_serves_is_not_rolled_out(ledger: Ledger, lease: Lease) -> None:
    ledger.generations.roll_back(request("1", expected=1, kind="rollback", request_id="back"), lease)
    for number, state in ((1, "draining"), (2, "failed"), (3, "live")):
        with pytest.raises(Conflict, match=f"generation {number} of 'digits' is {state}"):
            ledger.rollouts.begin(rollout(number), lease)
    assert ledger.rollouts.all_active() == ()


def test_what_was_live_stays_warm_one_at_most(ledger: Ledger, lease: Lease) -> None:
    go_live(ledger, lease, 2)
    assert states(ledger) == {1: "warm", 2: "live"}
    assert [g.number for g in ledger.generations.stamp("local").generations] == [1, 2]
    ledger.generations.append(request("3", expected=2), lease)
    go_live(ledger, lease, 3)
    assert states(ledger) == {1: "draining", 2: "warm", 3: "live"}
    ledger.generations.append(request("4", expected=3), lease)
    go_live(ledger, lease, 4, former=GenerationState.DRAINING)
    assert states(ledger) == {1: "draining", 2: "draining", 3: "draining", 4: "live"}


def test_a_rollback_is_live_at_once_and_sweeps_the_rest_away(ledger: Ledger, lease: Lease) -> None:
    go_live(ledger, lease, 2)
    ledger.generations.append(request("3", expected=2), lease)
    ledger.rollouts.begin(rollout(3, stable=2, weight=20), lease)
    before = ledger.audit.verify().count
    back = request("1", expected=2, kind="rollback", request_id="back", actor="bob")
    made = ledger.generations.roll_back(back, lease)
    assert (made.number, made.state, made.kind, made.bundle[-1]) == (4, LIVE, "rollback", "1")
    assert states(ledger) == {1: "draining", 2: "draining", 3: "failed", 4: "live"}
    ended = ledger.rollouts.get("digits", 3)
    assert ended is not None
    assert (ended.state, ended.weight) == ("aborted", 0)
    new = ledger.audit.rows(after_seq=before)
    assert [(row.action, row.subject) for row in new] == [
        ("rollout.aborted", "digits/3"),
        ("generation.draining", "digits/1"),
        ("generation.draining", "digits/2"),
        ("generation.failed", "digits/3"),
        ("generation.rollback", "digits/4"),
    ]
    assert {row.actor for row in new} == {"bob"}
    assert ledger.generations.roll_back(back, lease) == made
    with pytest.raises(Conflict, match="is at generation 4, not 2") as caught:
        ledger.generations.roll_back(replace(back, request_id="late"), lease)
    assert caught.value.details["live"] == 4


def test_a_rollback_that_had_to_load_ends_the_rollout_that_was_still_judged(ledger: Ledger, lease: Lease) -> None:
    ledger.rollouts.begin(rollout(weight=100), lease)
    go_live(ledger, lease, 2)
    ledger.generations.append(request("1", expected=2, kind="rollback"), lease)
    go_live(ledger, lease, 3, former=GenerationState.DRAINING)
    ended = ledger.rollouts.get("digits", 2)
    assert ended is not None
    assert (ended.state, ended.error) == ("aborted", {"error": "Superseded", "message": "generation 3 went live"})
    assert states(ledger) == {1: "draining", 2: "draining", 3: "live"}


def test_a_seized_lease_fences_a_living_holder(ledger: Ledger, lease: Lease) -> None:
    begun = ledger.rollouts.begin(rollout(), lease)
    far = replace(Owner.here("controller"), machine="elsewhere", pid=1)
    with pytest.raises(Conflict, match="is held by"):
        ledger.leases.acquire(lease.name, far)
    with ledger.leases.held(lease.name, far, seize=True) as taken:
        assert taken.token == lease.token + 1
        calls: list[Any] = [
            lambda: ledger.rollouts.save(replace(begun, weight=90), lease),
            lambda: ledger.rollouts.begin(rollout(), lease),
            lambda: ledger.rollouts.add_evidence("digits", 2, [{"n": 1}], lease),
            lambda: ledger.rollouts.answered("digits", 2, "pause", lease),
            lambda: ledger.generations.roll_back(request(expected=1, request_id="zombie"), lease),
            lambda: ledger.leases.renew(lease),
            lambda: ledger.generations.stamp("local", lease),
        ]
        count = ledger.audit.verify().count
        for call in calls:
            with pytest.raises(Conflict, match="no longer ours"):
                call()
    told = ledger.audit.rows(after_seq=count)
    assert [row.action for row in told] == ["refused"] * len(calls)
    assert {row.detail["token"] for row in told} == {lease.token}
    assert [row.actor for row in told] == ["ada", "ada", *["holder of token 1"] * 2, "ada", *["holder of token 1"] * 2]
    assert ledger.rollouts.active("digits") == begun
    assert ledger.rollouts.evidence("digits", 2) == ()


def test_a_refusal_leaves_one_row_however_often_it_is_repeated(ledger: Ledger, lease: Lease) -> None:
    count = ledger.audit.verify().count
    for _ in range(3):
        with pytest.raises(Conflict):
            ledger.generations.append(request("3", expected=1), lease)
    with pytest.raises(Conflict):
        ledger.generations.roll_back(request("3", expected=7, actor="eve"), lease)
    first, second = ledger.audit.rows(after_seq=count)
    assert (first.actor, first.action, first.subject) == ("ada", "refused", "digits")
    assert (first.detail["staged"], first.detail["kind"], first.detail["request_id"]) == (2, "promote", "3-after-1")
    assert (second.actor, second.detail["live"], second.detail["expected"]) == ("eve", 1, 7)


def test_the_database_itself_allows_one_active_rollout(ledger: Ledger, lease: Lease, ledger_url: str) -> None:
    begun = ledger.rollouts.begin(rollout(), lease)
    ledger.rollouts.save(replace(begun, state=RolloutState.ABORTED), lease)
    ledger.rollouts.begin(rollout(3), lease)
    database = Database(ledger_url, busy_timeout_s=5)
    for change in ("state = 'paused' where generation = 2", "weight = 101 where generation = 3"):
        with pytest.raises(LedgerError, match="refused"), database.write() as connection:
            connection.execute(text(f"update ledger_rollouts set {change}"))
    database.close()


def test_the_exported_audit_log_is_checked_without_the_ledger(ledger: Ledger, lease: Lease, tmp_path: Path) -> None:
    with pytest.raises(Conflict):
        ledger.generations.append(request("3", expected=1), lease)
    path = tmp_path / "audit.jsonl"
    head = ledger.audit.export(path)
    assert head == ledger.audit.verify()
    lines = path.read_text().splitlines()
    assert len(lines) == head.count + 1
    assert verify_lines(lines) == head
    for damaged in (
        [line.replace('"actor":"ada"', '"actor":"eve"') for line in lines],
        [*lines[:2], *lines[3:]],
        [lines[0], lines[2], lines[1], *lines[3:]],
        ['{"ledger":"another"}', *lines[1:]],
        lines[1:],
        [],
    ):
        with pytest.raises(IntegrityError):
            verify_lines(damaged)
