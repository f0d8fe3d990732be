from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import rollout_racer
from support.history import Operation

from orchestrator.core.errors import LedgerError
from orchestrator.ledger import GenerationState, Ledger

TESTS = Path(__file__).parents[1]
PROCESSES = 4


def race(url: str, what: str, rounds: int) -> dict[str, list[int]]:
    """Start the racers on a ledger that does not exist yet: creating it is part of the race."""
    children = {
        name: subprocess.Popen(
            [sys.executable, "-m", "support.ledger_racer", url, what, name, str(rounds)],
            cwd=TESTS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in (f"p{number}" for number in range(PROCESSES))
    }
    results: dict[str, list[int]] = {}
    for name, child in children.items():
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, err.decode()
        results[name] = json.loads(out)
    return results


def test_racing_for_a_lease_gives_each_token_once(ledger_url: str) -> None:
    tokens = race(ledger_url, "leases", 5)
    assert sorted(token for found in tokens.values() for token in found) == list(range(1, PROCESSES * 5 + 1))


def test_racing_for_a_generation_has_one_winner_a_round_and_no_gap(ledger_url: str) -> None:
    rounds = 12
    won = race(ledger_url, "generations", rounds)
    assert sorted(number for found in won.values() for number in found) == list(range(1, rounds + 1))
    with Ledger.open(ledger_url) as ledger:
        generations = ledger.generations.list("digits")
        assert [g.number for g in generations] == list(range(1, rounds + 1))
        assert [g.number for g in generations if g.state == GenerationState.LIVE] == [rounds]
        for generation in generations:
            assert generation.number in won[generation.actor]
        head = ledger.audit.verify()
        told = [row for row in ledger.audit.rows(limit=10_000) if row.action != "refused"]
        assert len(told) == rounds + rounds + 2 * (rounds - 1) <= head.count


def test_promoters_and_a_rollbacker_have_one_winner_a_round(ledger_url: str) -> None:
    seen = rollout_racer.race(ledger_url, rounds=10)
    figures, wrong = rollout_racer.judge(ledger_url, seen, rounds=10)
    assert not wrong
    assert figures["refused"] >= 10
    one = seen["p0"]
    lease, token = next((write.lease, write.token) for write in one.writes if write.op == "seize")
    one.writes.append(rollout_racer.Write("p0", "seize", lease, token + 99, 0, 1))
    one.writes.append(rollout_racer.Write("p0", "save", lease, token, 2, 3))
    told = {"endpoint": "digits", "expected": 999, "request_id": "x", "bundle": "x"}
    one.operations.append(Operation("p0", 2, 3, "promote", told, {"generation": 999}))
    one.operations.append(Operation("p0", 2, 3, "promote", told, error={"code": "Conflict", "details": {"live": 1}}))
    _, wrong = rollout_racer.judge(ledger_url, seen, rounds=9)
    assert {violation.kind for violation in wrong} >= {"fence", "lost", "refusal", "rounds"}


def test_a_writer_that_stands_still_gives_a_clear_error_in_bounded_time(ledger_url: str) -> None:
    with Ledger.open(ledger_url) as holder, Ledger.open(ledger_url, busy_timeout_s=0.3) as other:
        with holder._database.write(), pytest.raises(LedgerError, match=r"stayed busy for 0\.3 s"):
            other.projections.put("a", "b")
        other.projections.put("a", "b")
        assert holder.projections.get("a") == "b"
