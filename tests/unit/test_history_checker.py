"""The history checker finds each kind of violation, and nothing in a history that keeps its promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from support.history import Operation, Response, audit_of, violations
from support.ledger_samples import digest, request

from orchestrator.ledger import AuditRow, GenerationState, Ledger, Owner, Rollout, RolloutState

ONE, TWO, THREE = digest("1"), digest("2"), digest("3")


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[AuditRow]]:
    """Generation 1 live, 2 by a canary, 3 back to the first bundle; a row every 10 s from 100 on."""
    with Ledger.open(f"sqlite:///{tmp_path_factory.mktemp('history')}/ledger.db") as ledger:
        lease = ledger.leases.acquire("endpoint/digits", Owner.here("test"))
        to_live = {"actor": "ada", "former": GenerationState.WARM}
        ledger.generations.append(request("1"), lease)
        ledger.generations.set_state("digits", 1, GenerationState.LIVE, lease, **to_live)
        ledger.generations.append(request("2", expected=1), lease)
        walk = Rollout(endpoint="digits", generation=2, site="local", pool="edge", stable=1, strategy={}, actor="ada")
        walk = ledger.rollouts.begin(walk, lease)
        walk = ledger.rollouts.save(replace(walk, step=1, weight=10), lease)
        ledger.rollouts.save(replace(walk, state=RolloutState.SUCCEEDED), lease)
        ledger.generations.set_state("digits", 2, GenerationState.LIVE, lease, **to_live)
        back = replace(request("1", expected=2), kind="rollback", request_id="back")
        ledger.generations.roll_back(back, lease)
        yield [replace(row, t=100.0 + 10 * place) for place, row in enumerate(audit_of(ledger))]


def at(audit: list[AuditRow], action: str, number: int) -> float:
    return next(row.t for row in audit if (row.action, row.subject) == (action, f"digits/{number}"))


def good(audit: list[AuditRow]) -> tuple[list[Operation], list[Response]]:
    canary, two, three = (at(audit, *found) for found in (
        ("rollout.step", 2), ("generation.live", 2), ("generation.rollback", 3)))  # fmt: skip
    operations = [
        Operation("p1", "promote", 90, at(audit, "generation.live", 1), 0, ONE, number=1),
        Operation("p2", "promote", 95, 111, 0, TWO, current=1),
        Operation("p2", "promote", 112, two + 1, 1, TWO, number=2),
        Operation("r", "rollback", two + 2, three + 1, 2, ONE, number=3),
    ]
    responses = [
        Response("c", canary - 3, canary - 2, 1, ONE),
        Response("c", canary + 1, canary + 2, 2, TWO),
        Response("c", canary + 3, canary + 4, 1, ONE),
        Response("c", two + 2, two + 3, 2, TWO),
        Response("c", three + 2, three + 3, 3, ONE),
    ]
    return operations, responses


def test_a_history_that_keeps_its_promises(audit: list[AuditRow]) -> None:
    operations, responses = good(audit)
    assert violations("digits", audit, operations, responses) == []
    assert violations("others", audit, [], []) == []


class History:
    """A good one, to be spoilt."""

    def __init__(self, audit: list[AuditRow]) -> None:
        self.rows = list(audit)
        self.operations, self.responses = good(audit)
        self.two = at(audit, "generation.live", 2)

    def without(self, text: str) -> None:
        self.rows = [row for row in self.rows if text not in (row.action, row.subject)]

    def again(self, action: str, number: int) -> None:
        self.rows += [row for row in self.rows if (row.action, row.subject) == (action, f"digits/{number}")]

    def operation(self, place: int, **changes: object) -> None:
        self.operations.append(replace(self.operations[place], **changes))  # type: ignore[arg-type]

    def answer(self, after_s: float, generation: int, bundle: str, client: str = "d") -> None:
        self.responses.append(Response(client, self.two + after_s, self.two + after_s, generation, bundle))


SPOILT: dict[str, Callable[[History], None]] = {
    "generation 2 was made 2 times": lambda h: h.again("generation.promote", 2),
    "there is a gap": lambda h: h.without("digits/2"),
    "were live at once": lambda h: h.without("generation.warm"),
    "the ledger knows nothing of it": lambda h: h.operation(0, client="p3", expected=-1, number=4),
    "was told sha256:3": lambda h: h.operation(2, bundle=THREE),
    "generation 2 followed 1, not 0": lambda h: h.operation(2, expected=0),
    "2 operations that expected generation 1 won": lambda h: h.operation(2, client="p3", number=3, bundle=ONE),
    "was refused although generation 1 was live": lambda h: h.operation(1, expected=1, current=1),
    "which was never made": lambda h: h.answer(0, 9, TWO),
    "was answered by generation 2 with bundle sha256:1": lambda h: h.answer(1, 2, ONE),
    "answered by generation 2, neither live nor a canary": lambda h: h.answer(-200, 2, TWO),
    "answered by generation 1, neither live nor a canary": lambda h: h.answer(500, 1, ONE),
    "after 2 was acknowledged": lambda h: h.answer(1.2, 1, ONE),
    "no single client": lambda h: h.responses.append(replace(h.responses[0], sent=h.responses[0].sent + 0.1)),
}


@pytest.mark.parametrize("found", sorted(SPOILT))
def test_each_violation_is_found(audit: list[AuditRow], found: str) -> None:
    history = History(audit)
    SPOILT[found](history)
    assert any(found in text for text in violations("digits", history.rows, history.operations, history.responses))
