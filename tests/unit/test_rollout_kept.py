from __future__ import annotations

from typing import Any

from support.ledger_samples import digest, request

from orchestrator.ledger import Generation, GenerationState
from orchestrator.ledger.rows import values_of
from orchestrator.rollout.kept import kept


def generation(number: int, letter: str, state: str, **changes: Any) -> Generation:
    values = values_of(request(letter)) | changes
    del values["expected"]
    return Generation(**values, number=number, state=GenerationState(state), error=None, created_at=0.0, changed_at=0.0)


def test_what_is_loaded_and_the_last_two_former_builds_stay() -> None:
    known = [
        generation(1, "1", "retired"),
        generation(2, "2", "retired"),
        generation(3, "3", "failed"),
        generation(4, "4", "warm"),
        generation(5, "5", "live"),
        generation(6, "6", "staged"),
    ]
    assert sorted(g.number for g in kept(known)) == [2, 4, 5, 6]
    more = [*known[:5], generation(6, "6", "staged", evidence={"strategy": {"keep": 3}})]
    assert sorted(g.number for g in kept(more)) == [1, 2, 4, 5, 6]


def test_going_back_and_forth_pushes_no_third_build_out() -> None:
    known = [generation(1, "1", "retired")]
    known += [generation(n, "23"[n % 2], "retired") for n in range(2, 9)]
    known += [generation(9, "2", "live")]
    assert {g.bundle for g in kept(known)} == {digest("1"), digest("2"), digest("3")}
