"""Judges a recorded history: what promoters and clients saw, against what the ledger's audit says was decided, and when."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from orchestrator.ledger import AuditRow

Times = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Operation:
    """What one promoter or rollbacker did. Times are UTC seconds of the machine that keeps the ledger.

    Attributes:
        expected: The live generation that it named; -1 where it named none.
        number: The generation that it was told is live now; 0 where it was refused.
        current: Where it was refused: the live generation that it was told of.
    """

    client: str
    kind: str
    began: float
    ended: float
    expected: int
    bundle: str
    number: int = 0
    current: int = 0


@dataclass(frozen=True, slots=True)
class Response:
    """What one client got: who answered, `bundle` being the digest in the answer's header."""

    client: str
    sent: float
    received: float
    generation: int
    bundle: str


def violations(
    endpoint: str,
    audit: Sequence[AuditRow],
    operations: Iterable[Operation] = (),
    responses: Iterable[Response] = (),
    *,
    slack_s: float = 1.0,
) -> list[str]:
    """Return what the history shows against the promises; nothing where all hold.

    Args:
        endpoint: Whose history.
        audit: All rows of the ledger.
        operations: Acknowledged and refused ones; what ended without an answer may be either, and is left out.
        responses: Successful answers of requests that named no generation.
        slack_s: How long after the decision the old table may still rule at the router.
    """
    own = [row for row in audit if row.subject.partition("/")[0] == endpoint]
    operations = list(operations)
    return [
        *_numbers(own),
        *_one_live(own),
        *_acknowledged(own, operations),
        *_answers(own, operations, responses, slack_s),
    ]


def _number(row: AuditRow) -> int:
    return int(row.subject.rpartition("/")[2])


def _made(rows: Sequence[AuditRow]) -> dict[int, AuditRow]:
    return {_number(row): row for row in rows if row.action in ("generation.promote", "generation.rollback")}


def _numbers(rows: Sequence[AuditRow]) -> Iterable[str]:
    numbers = [_number(row) for row in rows if row.action in ("generation.promote", "generation.rollback")]
    for number, times in Counter(numbers).items():
        if times > 1:
            yield f"generation {number} was made {times} times"
    if numbers != sorted(numbers):
        yield f"generations were not made in order: {numbers}"
    if set(numbers) != set(range(1, len(set(numbers)) + 1)):
        yield f"there is a gap in the generations: {sorted(set(numbers))}"


def _went_live(row: AuditRow) -> bool:
    return row.action == "generation.live" or (
        row.action == "generation.rollback" and row.detail.get("state") == "live"
    )


def _one_live(rows: Sequence[AuditRow]) -> Iterable[str]:
    """Replay: inside one transaction the old one leaves before the new one goes live."""
    live: set[int] = set()
    for row in rows:
        if _went_live(row):
            live.add(_number(row))
        elif row.action in ("generation.warm", "generation.draining"):
            live.discard(_number(row))
        if len(live) > 1:
            yield f"generations {sorted(live)} were live at once (row {row.seq})"


def _acknowledged(rows: Sequence[AuditRow], operations: Sequence[Operation]) -> Iterable[str]:
    made, lived = _made(rows), {_number(row) for row in rows if _went_live(row)}
    for done in operations:
        if not done.number:
            if done.expected >= 0 and done.current == done.expected:
                yield f"{done.client} was refused although generation {done.expected} was live, as it had said"
        elif done.number not in made or done.number not in lived:
            yield f"{done.client} was told that generation {done.number} is live; the ledger knows nothing of it"
        elif made[done.number].detail["bundle"] != done.bundle:
            yield f"generation {done.number} is {made[done.number].detail['bundle']}, {done.client} was told {done.bundle}"
        elif done.expected >= 0 and made[done.number].detail.get("expected") != done.expected:
            yield f"generation {done.number} followed {made[done.number].detail.get('expected')}, not {done.expected}"
    won = Counter(done.expected for done in operations if done.number and done.expected >= 0)
    for expected, winners in won.items():
        numbers = {done.number for done in operations if done.number and done.expected == expected}
        if winners > 1 and len(numbers) > 1:
            yield f"{winners} operations that expected generation {expected} won: {sorted(numbers)}"


def _spans(rows: Sequence[AuditRow], slack_s: float) -> dict[int, list[Times]]:
    """When each generation was live or a declared canary, and as long afterwards as a request may have been under way."""
    opened: dict[int, float] = {}
    spans: dict[int, list[Times]] = {}
    for row in rows:
        if row.action.startswith(("generation.", "rollout.")) and "/" in row.subject:
            number, detail = _number(row), row.detail
            shown = any(detail.get(name) for name in ("weight", "mirror", "headers"))
            if _went_live(row) or (row.action == "rollout.step" and shown):
                opened.setdefault(number, row.t)
            elif row.action in ("generation.warm", "generation.draining", "generation.failed", "rollout.aborted"):
                spans.setdefault(number, []).append((opened.pop(number, math.inf), row.t + slack_s))
    for number, since in opened.items():
        spans.setdefault(number, []).append((since, math.inf))
    return spans


def _answers(
    rows: Sequence[AuditRow], operations: Sequence[Operation], responses: Iterable[Response], slack_s: float
) -> Iterable[str]:
    made, spans = _made(rows), _spans(rows, slack_s)
    told = sorted((done.ended, done.number) for done in operations if done.number)
    newest = [(ended, max(number for _, number in told[: place + 1])) for place, (ended, _) in enumerate(told)]
    by_client: dict[str, list[Response]] = {}
    for answer in responses:
        by_client.setdefault(answer.client, []).append(answer)
        if answer.generation not in made:
            yield f"{answer.client} was answered by generation {answer.generation}, which was never made"
            continue
        if made[answer.generation].detail["bundle"] != answer.bundle:
            yield f"{answer.client} was answered by generation {answer.generation} with bundle {answer.bundle}"
        if not any(
            since <= answer.received and answer.sent <= until for since, until in spans.get(answer.generation, [])
        ):
            yield f"{answer.client} was answered by generation {answer.generation}, neither live nor a canary then"
        floor = max((number for ended, number in newest if ended <= answer.sent), default=0)
        if answer.generation < floor:
            yield f"{answer.client} was answered by generation {answer.generation} after {floor} was acknowledged"
    for client, answers in by_client.items():
        for before, after in pairwise(sorted(answers, key=lambda answer: answer.sent)):
            if after.sent < before.received:
                yield f"{client} is no single client: its requests overlap"
                break


def audit_of(ledger: Any) -> list[AuditRow]:
    """Return all rows."""
    rows: list[AuditRow] = []
    while found := ledger.audit.rows(after_seq=rows[-1].seq if rows else 0, limit=10_000):
        rows.extend(found)
    return rows
