from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from support.history import Operation, Response, check

ENDPOINT = "digits"


@dataclass(frozen=True)
class Row:
    t: float
    action: str
    subject: str
    detail: dict[str, Any]


def row(t: float, action: str, number: int, **detail: Any) -> Row:
    return Row(t, action, f"{ENDPOINT}/{number}", {"bundle": f"b{number}", **detail})


def good_audit() -> list[Row]:
    """1 live at 1; 2 on trial from 11 with 10 %, live at 20; 3 on trial from 30, rolled back at 32 by 4 live."""
    return [
        row(0, "generation.promote", 1, expected=0, state="staged"),
        row(1, "generation.live", 1),
        row(10, "generation.promote", 2, expected=1, state="staged"),
        row(10.5, "rollout.begin", 2, weight=0, mirror=0, headers=[]),
        row(11, "rollout.step", 2, weight=10),
        row(11.1, "refused", 2),
        row(20, "generation.warm", 1),
        row(20, "generation.live", 2),
        row(20.1, "rollout.succeeded", 2, state="succeeded", weight=100),
        row(30, "generation.promote", 3, expected=2, state="staged"),
        row(30, "rollout.begin", 3, weight=5, mirror=0, headers=[]),
        row(32, "rollout.aborted", 3, weight=0),
        row(32, "generation.draining", 1),
        row(32, "generation.draining", 2),
        row(32, "generation.failed", 3),
        row(32, "generation.rollback", 4, expected=2, state="live", bundle="b1"),
        row(33, "generation.retired", 2),
        Row(34, "note", "other/9", {}),
    ]


def operation(number: int, t: float, expected: int, **changes: Any) -> Operation:
    args = {"endpoint": ENDPOINT, "expected": expected, "request_id": f"r{number}", "bundle": f"b{number}"}
    return replace(Operation("p1", t, t + 0.1, "promote", args, {"generation": number}), **changes)


GOOD_OPERATIONS = [
    operation(1, 0, 0),
    operation(2, 10, 1),
    operation(2, 40, 1),  # a repeat of the same request gets the first result, late
    operation(3, 30, 2),
    operation(4, 32, 2, op="rollback", args={"expected": 2, "request_id": "r4", "bundle": "b1"}),
    operation(5, 32, 2, t_ok=None, result=None),
    operation(5, 32, 2, result=None, error={"code": "Conflict", "details": {"live": 4}}),
]


def answer(generation: int, t: float, **changes: Any) -> Response:
    bundle = {4: "b1"}.get(generation, f"b{generation}")
    return replace(Response("c1", t, t + 0.01, generation, bundle), **changes)


GOOD_ANSWERS = [
    answer(1, 5),
    answer(2, 12),  # the canary has 10 %
    answer(1, 12),
    answer(1, 20.5),  # within the drain
    answer(2, 10.99, t_recv=11.2),  # sent before, answered after its trial had begun
    answer(1, 28, versioned=True),  # warm
    answer(3, 31),
    answer(4, 35),
    answer(2, 100, ok=False),
]


def test_a_good_history_has_nothing_wrong() -> None:
    assert check(ENDPOINT, good_audit(), GOOD_OPERATIONS, GOOD_ANSWERS, drain_s=1) == []


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("duplicate", row(50, "generation.promote", 4, expected=4, state="staged")),
        ("gap", row(50, "generation.promote", 6, expected=4, state="staged")),
        ("two live", row(50, "generation.rollback", 5, expected=4, state="live")),
        ("two winners", row(50, "generation.rollback", 5, expected=2, state="live")),
        ("unknown", row(50, "generation.live", 7)),
        ("unknown", row(50, "rollout.step", 7, weight=10)),
    ],
)
def test_what_the_ledger_may_not_say(kind: str, extra: Row) -> None:
    assert kind in {violation.kind for violation in check(ENDPOINT, [*good_audit(), extra])}


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("lost", operation(5, 50, 4)),
        ("shared", operation(2, 50, 1, args={"request_id": "another", "expected": 1})),
        ("changed", operation(2, 10, 1, args={"request_id": "r2", "bundle": "b9"})),
        ("changed", operation(2, 10, 7)),
        ("order", operation(1, 35, 0, args={"request_id": "late", "expected": 0})),
    ],
)
def test_what_clients_may_not_be_told(kind: str, extra: Operation) -> None:
    found = check(ENDPOINT, good_audit(), [*GOOD_OPERATIONS, extra])
    assert kind in {violation.kind for violation in found}, found


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("foreign", answer(9, 12)),
        ("bundle", answer(2, 25, bundle="b1")),
        ("not served", answer(1, 0.1)),  # staged, not on trial
        ("not served", answer(2, 10.6)),  # its trial has weight 0
        ("not served", answer(1, 28)),  # warm gets nothing but versioned requests
        ("not served", answer(3, 33.5)),  # failed
        ("not served", answer(2, 36)),
        ("not served", answer(2, 36, versioned=True)),  # retired
    ],
)
def test_what_clients_may_not_see(kind: str, wrong: Response) -> None:
    (violation,) = check(ENDPOINT, good_audit(), GOOD_OPERATIONS, [*GOOD_ANSWERS, wrong], drain_s=1)
    assert violation.kind == kind
    assert "c1" in violation.text


def test_a_live_one_that_never_left_its_place_shows_both() -> None:
    audit = [one for one in good_audit() if one.action != "generation.warm"]
    assert [violation.kind for violation in check(ENDPOINT, audit)] == ["two live"]


def test_a_header_route_is_a_trial_and_a_mirror_shows_nobody_the_canary() -> None:
    for part, wrong in (({"headers": [{"name": "x-a"}]}, []), ({"mirror": 5}, ["not served"])):
        audit = [*good_audit()[:4], row(11, "rollout.step", 2, **part)]
        assert [v.kind for v in check(ENDPOINT, audit, (), [answer(2, 12)])] == wrong
