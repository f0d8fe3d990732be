from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from support.ledger_samples import digest, request

from orchestrator.core.digests import sha256_json
from orchestrator.core.errors import Conflict, IntegrityError, LedgerError
from orchestrator.ledger import Generation, GenerationState, Lease, Ledger, Owner
from orchestrator.ledger.database import Database
from orchestrator.ledger.rows import values_of

STAGED, LIVE, DRAINING, RETIRED, FAILED = (
    GenerationState.STAGED,
    GenerationState.LIVE,
    GenerationState.DRAINING,
    GenerationState.RETIRED,
    GenerationState.FAILED,
)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with Ledger.open(ledger_url) as opened:
        yield opened


@pytest.fixture
def lease(ledger: Ledger) -> Lease:
    return ledger.leases.acquire("endpoint/digits", Owner.here("test"))


def go(ledger: Ledger, lease: Lease, generation: Generation, *states: GenerationState) -> Generation:
    for state in states:
        generation = ledger.generations.set_state("digits", generation.number, state, lease, actor="ada")
    return generation


def states(ledger: Ledger) -> dict[int, str]:
    return {g.number: str(g.state) for g in ledger.generations.list("digits")}


def test_first_generation(ledger: Ledger, lease: Lease) -> None:
    made = ledger.generations.append(request(evidence={"accuracy": 0.98}), lease)
    assert (made.number, made.state, made.bundle, made.evidence) == (1, STAGED, digest("1"), {"accuracy": 0.98})
    assert ledger.generations.get("digits", 1) == made
    assert ledger.generations.live("digits") is None
    live = go(ledger, lease, made, LIVE)
    assert ledger.generations.live("digits") == live
    assert ledger.generations.endpoints() == ("digits",)
    assert ledger.generations.get("digits", 7) is None


def test_going_live_moves_the_old_one_to_draining_at_once(ledger: Ledger, lease: Lease) -> None:
    go(ledger, lease, ledger.generations.append(request("1"), lease), LIVE)
    go(ledger, lease, ledger.generations.append(request("2", expected=1), lease), LIVE)
    assert states(ledger) == {1: "draining", 2: "live"}


def test_compare_and_set(ledger: Ledger, lease: Lease) -> None:
    go(ledger, lease, ledger.generations.append(request("1"), lease), LIVE)
    with pytest.raises(Conflict, match="is at generation 1, not 0") as caught:
        ledger.generations.append(request("2"), lease)
    assert caught.value.details["live"] == 1
    ledger.generations.append(request("2", expected=1), lease)
    with pytest.raises(Conflict, match="generation 2 of 'digits' is being rolled out by ada"):
        ledger.generations.append(request("3", expected=1), lease)
    assert states(ledger) == {1: "live", 2: "staged"}


def test_the_same_request_gets_the_first_result_whatever_happened_since(ledger: Ledger, lease: Lease) -> None:
    first = ledger.generations.append(request("1"), lease)
    go(ledger, lease, first, LIVE)
    go(ledger, lease, ledger.generations.append(request("2", expected=1), lease), LIVE)
    again = ledger.generations.append(request("1"), lease)
    assert (again.number, again.state) == (1, DRAINING)
    assert len(states(ledger)) == 2


@pytest.mark.parametrize("changed", [{"bundle": "9"}, {"pool": "other"}, {"kind": "rollback"}])
def test_the_same_request_id_for_something_else_is_refused(
    ledger: Ledger, lease: Lease, changed: dict[str, str]
) -> None:
    ledger.generations.append(request("1"), lease)
    with pytest.raises(Conflict, match="already made generation 1"):
        ledger.generations.append(request(**{"request_id": "1-after-0", **changed}), lease)


def test_numbers_are_never_reused_after_a_failure(ledger: Ledger, lease: Lease) -> None:
    first = ledger.generations.append(request("1"), lease)
    failed = ledger.generations.set_state("digits", 1, FAILED, lease, actor="ada", error={"message": "no replica"})
    assert failed.error == {"message": "no replica"}
    second = ledger.generations.append(request("1", request_id="again"), lease)
    assert (first.number, second.number) == (1, 2)


def test_a_rollback_is_a_new_generation_of_an_old_bundle(ledger: Ledger, lease: Lease) -> None:
    for number, bundle in enumerate("12"):
        go(ledger, lease, ledger.generations.append(request(bundle, expected=number), lease), LIVE)
    back = ledger.generations.append(request("1", expected=2, kind="rollback"), lease)
    go(ledger, lease, back, LIVE)
    assert (back.number, back.bundle, back.kind) == (3, digest("1"), "rollback")


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ((), DRAINING),
        ((), RETIRED),
        ((LIVE,), FAILED),
        ((LIVE,), STAGED),
        ((FAILED,), LIVE),
        ((LIVE, DRAINING, RETIRED), LIVE),
    ],
)
def test_moves_outside_the_table_are_refused(
    ledger: Ledger, lease: Lease, path: tuple[GenerationState, ...], target: GenerationState
) -> None:
    made = go(ledger, lease, ledger.generations.append(request(), lease), *path)
    with pytest.raises(Conflict, match=f"is {made.state} and cannot become {target}"):
        go(ledger, lease, made, target)
    assert states(ledger) == {1: str(made.state)}


def test_state_changes_are_idempotent_and_name_what_is_missing(ledger: Ledger, lease: Lease) -> None:
    made = go(ledger, lease, ledger.generations.append(request(), lease), LIVE)
    assert go(ledger, lease, made, LIVE) == made
    with pytest.raises(LedgerError, match="no generation 5"):
        ledger.generations.set_state("digits", 5, LIVE, lease, actor="ada")


def test_fenced_writers_are_refused(ledger: Ledger, lease: Lease) -> None:
    ledger.generations.append(request(), lease)
    ledger.leases.release(lease)
    ledger.leases.acquire(lease.name, Owner.here())
    for call in (
        lambda: ledger.generations.append(request("2"), lease),
        lambda: ledger.generations.set_state("digits", 1, LIVE, lease, actor="ada"),
        lambda: ledger.generations.stamp("local", lease),
    ):
        with pytest.raises(Conflict, match="no longer ours"):
            call()
    assert states(ledger) == {1: "staged"}


def test_table_versions_grow_per_site_and_carry_what_is_routed(ledger: Ledger, lease: Lease) -> None:
    go(ledger, lease, ledger.generations.append(request("1"), lease), LIVE)
    go(ledger, lease, ledger.generations.append(request("2", expected=1), lease), LIVE)
    go(ledger, lease, ledger.generations.append(request("3", expected=2), lease), FAILED)
    stamp = ledger.generations.stamp("local", lease)
    assert (stamp.version, [(g.number, g.state) for g in stamp.generations]) == (1, [(1, DRAINING), (2, LIVE)])
    assert ledger.generations.stamp("local").version == 2
    other = ledger.generations.stamp("plant-7")
    assert (other.version, other.generations) == (1, ())


def test_every_change_is_in_the_audit_chain(ledger: Ledger, lease: Lease) -> None:
    go(ledger, lease, ledger.generations.append(request("1"), lease), LIVE)
    go(ledger, lease, ledger.generations.append(request("2", expected=1), lease), LIVE)
    ledger.audit.append("ada", "approve", "digits/2", {"why": "grüße"})
    rows = ledger.audit.rows()
    assert [(row.seq, row.action, row.subject) for row in rows] == [
        (1, "generation.promote", "digits/1"),
        (2, "generation.live", "digits/1"),
        (3, "generation.promote", "digits/2"),
        (4, "generation.draining", "digits/1"),
        (5, "generation.live", "digits/2"),
        (6, "approve", "digits/2"),
    ]
    assert ledger.audit.verify().count == 6
    assert [row.seq for row in ledger.audit.rows(after_seq=4, limit=1)] == [5]
    assert ledger.audit.verify().hash == rows[-1].hash


@pytest.mark.parametrize(
    ("damage", "row"),
    [
        ("update ledger_audit set actor = 'eve' where seq = 2", 2),
        ("update ledger_audit set detail = '{}' where seq = 1", 1),
        ("delete from ledger_audit where seq = 2", 3),
        ("delete from ledger_audit where seq = 1", 2),
    ],
)
def test_damage_to_the_audit_chain_shows(ledger: Ledger, ledger_url: str, damage: str, row: int) -> None:
    for number in range(3):
        ledger.audit.append("ada", "approve", f"digits/{number}", {"n": number})
    database = Database(ledger_url, busy_timeout_s=5)
    with database.write() as connection:
        connection.execute(text(damage))
    database.close()
    with pytest.raises(IntegrityError, match=f"breaks at row {row}"):
        ledger.audit.verify()


def test_a_row_that_was_changed_together_with_its_hash_breaks_the_next_one(ledger: Ledger, ledger_url: str) -> None:
    for number in range(3):
        ledger.audit.append("ada", "approve", f"digits/{number}")
    forged = {**values_of(ledger.audit.rows()[1]), "actor": "eve"}
    del forged["hash"]
    database = Database(ledger_url, busy_timeout_s=5)
    with database.write() as connection:
        values = {"hash": sha256_json(forged)}
        connection.execute(text("update ledger_audit set actor = 'eve', hash = :hash where seq = 2"), values)
    database.close()
    with pytest.raises(IntegrityError, match="breaks at row 3"):
        ledger.audit.verify()


@pytest.mark.parametrize("state", ["live", "staged"])
def test_the_database_itself_allows_one_live_and_one_staged(
    ledger: Ledger, lease: Lease, ledger_url: str, state: str
) -> None:
    for number in (1, 2):
        go(ledger, lease, ledger.generations.append(request(str(number), expected=number - 1), lease), LIVE)
    go(ledger, lease, ledger.generations.append(request("3", expected=2), lease))
    database = Database(ledger_url, busy_timeout_s=5)
    with pytest.raises(LedgerError, match="refused"), database.write() as connection:
        connection.execute(text(f"update ledger_generations set state = '{state}' where number = 1"))
    database.close()
    assert states(ledger) == {1: "draining", 2: "live", 3: "staged"}
