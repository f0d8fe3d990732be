"""Judges a recorded history of promotions, rollbacks and answers against the ledger's audit rows. Pure.

All times are UTC seconds of one machine's clock. What the clients saw must be explained by what the ledger says was live.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Row(Protocol):
    """What is read of an audit row."""

    @property
    def t(self) -> float: ...
    @property
    def action(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def detail(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Operation:
    """A promotion or rollback as its client saw it.

    Attributes:
        t_ok: When the answer came; None where it never did (killed, timed out): it may have happened or not.
        op: promote|rollback.
        args: {endpoint, expected, request_id, bundle}.
        result: {generation} when acknowledged.
        error: {code, details} when refused.
    """

    client: str
    t_invoke: float
    t_ok: float | None
    op: str
    args: Mapping[str, Any]
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """An answer of an endpoint; `versioned` when the client asked for that generation by its number."""

    client: str
    t_send: float
    t_recv: float
    generation: int
    bundle: str
    ok: bool = True
    versioned: bool = False


@dataclass(frozen=True, slots=True)
class Violation:
    """What cannot be: `kind` for machines, `text` for people."""

    kind: str
    text: str


@dataclass(slots=True)
class Span:
    """From when until when something held."""

    begin: float
    end: float = math.inf


@dataclass(slots=True)
class Life:
    """What the audit rows tell of one generation: `shown` while it was live or on trial, `routed` while it was in the table."""

    number: int
    bundle: str
    expected: int
    routed: Span
    state: str = "staged"
    went_live: bool = False
    shown: list[Span] = field(default_factory=list[Span])
    trial: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def show(self, t: float) -> None:
        """Open or close the span in which clients may get it without asking for it; mirrored answers are never sent."""
        exposed = self.state == "live" or (self.state == "staged" and any(self.trial.values()))
        open_now = bool(self.shown) and math.isinf(self.shown[-1].end)
        if exposed and not open_now:
            self.shown.append(Span(t))
        elif open_now and not exposed:
            self.shown[-1].end = t


def check(
    endpoint: str,
    audit: Iterable[Row],
    operations: Sequence[Operation] = (),
    responses: Sequence[Response] = (),
    *,
    drain_s: float = 5.0,
) -> list[Violation]:
    """Return what is wrong with a history; nothing is wrong with a good one.

    `drain_s`: how long after a switch a generation may still answer: publishing the table and ending what had begun.
    """
    lives, found = replay(endpoint, audit)
    return (
        found + _acknowledged(endpoint, lives, operations) + _ordered(operations) + _answers(lives, responses, drain_s)
    )


def replay(endpoint: str, audit: Iterable[Row]) -> tuple[dict[int, Life], list[Violation]]:
    """Rebuild the lives of an endpoint's generations from its audit rows."""
    lives: dict[int, Life] = {}
    found: list[Violation] = []
    for row in audit:
        name, _, number = row.subject.rpartition("/")
        if name == endpoint and number.isdigit():
            found += _apply(lives, int(number), row)
    return lives, found


def _apply(lives: dict[int, Life], number: int, row: Row) -> list[Violation]:
    what, _, verb = row.action.partition(".")
    life = lives.get(number)
    if what == "generation" and verb in ("promote", "rollback"):
        found = _born(lives, number, row)
        lives[number] = life = Life(
            number, str(row.detail["bundle"]), int(row.detail["expected"]), Span(row.t), str(row.detail["state"])
        )
    elif life is None:
        return [Violation("unknown", f"{row.action} of generation {number}, which was never made")]
    elif what == "generation":
        found, life.state = [], verb
        if verb in ("retired", "failed"):
            life.routed.end = row.t
    elif what == "rollout":
        found = []
        life.trial = {**life.trial, **{k: row.detail[k] for k in ("weight", "headers") if k in row.detail}}
    else:
        return []
    if what == "generation" and life.state == "live" and not life.went_live:
        found += _went_live(lives, life)
    life.show(row.t)
    return found


def _born(lives: Mapping[int, Life], number: int, row: Row) -> list[Violation]:
    if number in lives:
        return [Violation("duplicate", f"generation {number} was made twice, again by {row.action} at {row.t}")]
    if number != len(lives) + 1:
        return [Violation("gap", f"generation {number} was made after {len(lives)} others")]
    return []


def _went_live(lives: Mapping[int, Life], life: Life) -> list[Violation]:
    others = [other for other in lives.values() if other is not life]
    found = [
        Violation("two live", f"generation {life.number} went live while {other.number} was")
        for other in others
        if other.state == "live"
    ]
    found += [
        Violation("two winners", f"generations {other.number} and {life.number} both followed {life.expected}")
        for other in others
        if other.went_live and other.expected == life.expected
    ]
    life.went_live = True
    return found


def _acknowledged(endpoint: str, lives: Mapping[int, Life], operations: Sequence[Operation]) -> list[Violation]:
    found: list[Violation] = []
    owners: dict[int, str] = {}
    for operation in operations:
        if operation.result is None or operation.args.get("endpoint", endpoint) != endpoint:
            continue
        number, who = int(operation.result["generation"]), f"{operation.op} of {operation.client}"
        request = str(operation.args.get("request_id", ""))
        life = lives.get(number)
        if owners.setdefault(number, request) != request:
            found.append(Violation("shared", f"generation {number} was given to {request} and {owners[number]}"))
        if life is None:
            found.append(Violation("lost", f"{who} was told generation {number}, which the ledger does not know"))
        elif operation.args.get("bundle", life.bundle) != life.bundle:
            found.append(Violation("changed", f"{who}: generation {number} is {life.bundle}"))
        elif operation.args.get("expected", life.expected) != life.expected:
            found.append(Violation("changed", f"{who}: generation {number} followed {life.expected}"))
    return found


def _ordered(operations: Sequence[Operation]) -> list[Violation]:
    """Numbers grow in real time: what was acknowledged before another began has the lower number."""
    found: list[Violation] = []
    first: dict[str, Operation] = {}
    for operation in operations:  # a repeat gets the first result, whenever it comes
        request = str(operation.args.get("request_id", id(operation)))
        if operation.result is not None and operation.t_ok is not None:
            known = first.get(request)
            if known is None or operation.t_invoke < known.t_invoke:
                first[request] = operation
    ended = sorted(first.values(), key=lambda o: o.t_ok or 0.0)
    begun = sorted(first.values(), key=lambda o: o.t_invoke)
    highest, position = 0, 0
    for operation in begun:
        while position < len(ended) and (ended[position].t_ok or 0.0) < operation.t_invoke:
            highest = max(highest, _number(ended[position]))
            position += 1
        if _number(operation) <= highest:
            text = f"{operation.client} got {_number(operation)} after {highest} had been told"
            found.append(Violation("order", text))
    return found


def _number(operation: Operation) -> int:
    return int((operation.result or {})["generation"])


def _answers(lives: Mapping[int, Life], responses: Sequence[Response], drain_s: float) -> list[Violation]:
    found: list[Violation] = []
    for answer in responses:
        if not answer.ok:
            continue
        life, who = lives.get(answer.generation), f"{answer.client} at {answer.t_recv:.3f}"
        if life is None:
            found.append(Violation("foreign", f"{who} was answered by generation {answer.generation}, never made"))
            continue
        if life.bundle != answer.bundle:
            text = f"{who}: generation {life.number} is {life.bundle}, not {answer.bundle}"
            found.append(Violation("bundle", text))
        spans = [life.routed] if answer.versioned else life.shown
        if not any(s.begin <= answer.t_recv and answer.t_send <= s.end + drain_s for s in spans):
            text = f"{who} was answered by generation {life.number}, sent {answer.t_send:.3f}, shown {spans}"
            found.append(Violation("not served", text))
    return found
