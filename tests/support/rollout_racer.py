"""Promoters and a rollbacker, processes of their own, that race for each next generation of one endpoint; and their judge.

A round is one live generation that all expect. The rollbacker also seizes promoters' leases, which fences them.
"""

from __future__ import annotations

import multiprocessing
import queue
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.core.errors import Conflict
from orchestrator.ledger import Generation, GenerationState, Lease, Ledger, Owner, RolloutState
from support.history import Operation, Violation, check, replay
from support.ledger_samples import digest, request, rollout

ENDPOINT = "digits"
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Write:
    """A write under a lease, or a seizure of it (`op` = seize, `token` = the new one)."""

    client: str
    op: str
    lease: str
    token: int
    t_invoke: float
    t_ok: float
    refused: str = ""


@dataclass(slots=True)
class Seen:
    """What one racer did and was told."""

    operations: list[Operation] = field(default_factory=list[Operation])
    writes: list[Write] = field(default_factory=list[Write])


class Racer:
    """One process of the race."""

    def __init__(self, ledger: Ledger, name: str, promoters: Sequence[str]) -> None:
        self.ledger, self.name, self.promoters = ledger, name, promoters
        self.seen, self.dice = Seen(), random.Random(name)
        self.lease = self.seize(name)

    def seize(self, whose: str) -> Lease:
        began = time.time()
        lease = self.ledger.leases.acquire(f"race/{whose}", Owner.here(self.name), ttl_s=600, seize=True)
        self.seen.writes.append(Write(self.name, "seize", lease.name, lease.token, began, time.time()))
        return lease

    def write(self, op: str, work: Callable[[], Any]) -> Any:
        began, refused = time.time(), ""
        try:
            return work()
        except Conflict as error:
            refused = error.message
            raise
        finally:
            self.seen.writes.append(
                Write(self.name, op, self.lease.name, self.lease.token, began, time.time(), refused)
            )

    def ask(self, op: str, expected: int) -> Generation | None:
        """Ask once for the next generation; returns what was made, None when refused."""
        bundle = str(self.dice.randrange(10))
        kind = "rollback" if op == "rollback" else "promote"
        wanted = request(bundle, expected=expected, request_id=f"{self.name}/{expected}", actor=self.name, kind=kind)
        call = self.ledger.generations.roll_back if op == "rollback" else self.ledger.generations.append
        args = {"endpoint": ENDPOINT, "expected": expected, "request_id": wanted.request_id, "bundle": digest(bundle)}
        began, made, error = time.time(), None, None
        try:
            made = self.write(op, lambda: call(wanted, self.lease))
        except Conflict as refusal:
            error = {"code": refusal.code, "details": dict(refusal.details)}
        result = None if made is None else {"generation": made.number}
        self.seen.operations.append(Operation(self.name, began, time.time(), op, args, result, error))
        return made

    def promote(self, expected: int) -> None:
        """Stage, try and bring live; a fence or a rollback may come between any two of these."""
        if self.ledger.leases.holder(self.lease.name) is None or self.fenced():
            self.lease = self.seize(self.name)
        made = self.ask("promote", expected)
        if made is None:
            return
        rollouts, generations = self.ledger.rollouts, self.ledger.generations
        try:
            row = rollout(made.number, stable=expected, actor=self.name)
            row = self.write("begin", lambda: rollouts.begin(row, self.lease))
            row = self.write("save", lambda: rollouts.save(replace(row, weight=10, step=1), self.lease))
            time.sleep(self.dice.random() * 0.004)
            live = lambda: generations.set_state(  # noqa: E731
                ENDPOINT, made.number, GenerationState.LIVE, self.lease, actor=self.name, former=GenerationState.WARM
            )
            self.write("live", live)
            over = replace(row, state=RolloutState.SUCCEEDED, weight=100)
            self.write("save", lambda: rollouts.save(over, self.lease))
        except Conflict:
            return  # recorded; whoever came between has the round, or the rollbacker will

    def fenced(self) -> bool:
        try:
            self.ledger.leases.check(self.lease)
        except Conflict:
            return True
        return False

    def roll_back(self, expected: int) -> None:
        """Sometimes fence a promoter, sometimes wait for one to be half done, then take the endpoint back."""
        if not expected:
            return
        if self.dice.random() < 0.5:
            self.seize(self.dice.choice(self.promoters))
        time.sleep(self.dice.random() * 0.12)
        self.ask("rollback", expected)


def _race(url: str, role: str, names: tuple[str, Sequence[str]], rounds: int, gate: Any, out: Any) -> None:
    name, promoters = names
    with Ledger.open(url) as ledger:
        racer = Racer(ledger, name, promoters)
        for _ in range(rounds):
            gate.wait(_PATIENCE_S)
            live = ledger.generations.live(ENDPOINT)
            gate.wait(_PATIENCE_S)  # all expect the same one
            (racer.roll_back if role == "rollback" else racer.promote)(0 if live is None else live.number)
        out.put((name, racer.seen))


def race(url: str, *, rounds: int, promoters: int = 4) -> dict[str, Seen]:
    """Run the race on a ledger, which need not exist yet, and return what each racer saw."""
    context = multiprocessing.get_context("spawn")
    gate, out = context.Barrier(promoters + 1), context.Queue()
    names = [f"p{number}" for number in range(promoters)]
    roles = [("promote", name) for name in names] + [("rollback", "back")]
    children = [
        context.Process(target=_race, args=(url, role, (name, names), rounds, gate, out), daemon=True)
        for role, name in roles
    ]
    for child in children:
        child.start()
    found: dict[str, Seen] = {}
    try:
        while len(found) < len(children):
            try:
                name, seen = out.get(timeout=1)
            except queue.Empty:
                if any(child.exitcode not in (None, 0) for child in children):
                    raise RuntimeError("a racer broke down; its trace is on stderr") from None
                continue
            found[name] = seen
    finally:
        gate.abort()
        for child in children:
            child.join(10)
    return found


def judge(url: str, seen: Mapping[str, Seen], *, rounds: int) -> tuple[dict[str, Any], list[Violation]]:
    """Check the race against its ledger; returns figures and everything that is wrong."""
    with Ledger.open(url) as ledger:
        count = ledger.audit.verify().count
        audit = ledger.audit.rows(limit=count)
        stored = ledger.generations.list(ENDPOINT)
    operations = [operation for one in seen.values() for operation in one.operations]
    writes = [write for one in seen.values() for write in one.writes]
    found = check(ENDPOINT, audit, operations)
    lives, _ = replay(ENDPOINT, audit)
    chain = [life for life in lives.values() if life.went_live]
    if [life.expected for life in chain] != [0, *(life.number for life in chain[:-1])]:
        found.append(Violation("chain", "a live generation does not follow the live one before it"))
    if len(chain) != rounds:
        found.append(Violation("rounds", f"{len(chain)} generations went live in {rounds} rounds"))
    if [(g.number, str(g.state), g.bundle) for g in stored] != [(n.number, n.state, n.bundle) for n in lives.values()]:
        found.append(Violation("replay", "the audit rows tell another end than the generations"))
    refused = [operation for operation in operations if operation.error is not None]
    found += _refusals(refused, {life.expected: life.number for life in chain}, lives)
    fenced, wrong = _fences(writes)
    kinds = Counter(stored[life.number - 1].kind for life in chain)
    figures = {
        "rounds": rounds,
        "generations": len(stored),
        "won_by_promoters": kinds["promote"],
        "won_by_rollback": kinds["rollback"],
        "superseded": sum(g.state == GenerationState.FAILED for g in stored),
        "refused": len(refused),
        "refusals_in_audit": sum(row.action == "refused" for row in audit),
        "seized": sum(write.op == "seize" for write in writes),
        "fenced_writes_refused": fenced,
        "audit_rows": count,
    }
    return figures, found + wrong


def _refusals(refused: Sequence[Operation], winners: Mapping[int, int], lives: Mapping[int, Any]) -> list[Violation]:
    """Each refusal names who came first: the winner of the round, or one that was staged for it; or it was a fence."""
    found: list[Violation] = []
    for operation in refused:
        details, expected = dict((operation.error or {})["details"]), int(operation.args["expected"])
        if "lease" in details:
            continue
        first = details.get("staged") or details.get("rollout") or details.get("live")
        of_round = first in lives and lives[first].expected == expected
        judged = details.get("rollout") == expected  # it is live, its rollout was left open by a fence
        if not (first == winners.get(expected) or of_round or judged):
            text = (
                f"{operation.client} expected {expected} and was told {details}, the winner is {winners.get(expected)}"
            )
            found.append(Violation("refusal", text))
    return found


def _fences(writes: Sequence[Write]) -> tuple[int, list[Violation]]:
    """After a seizure was acknowledged no write with an older token may begin and succeed."""
    found: list[Violation] = []
    fenced = 0
    for write in writes:
        taken = [
            other
            for other in writes
            if other.op == "seize" and other.lease == write.lease and other.token > write.token
        ]
        if write.op == "seize":
            continue
        fenced += "no longer ours" in write.refused
        if not write.refused and any(other.t_ok < write.t_invoke for other in taken):
            found.append(
                Violation("fence", f"{write.client} wrote {write.op} with token {write.token} after a seizure")
            )
        if "no longer ours" in write.refused and not any(other.t_invoke < write.t_ok for other in taken):
            found.append(Violation("fence", f"{write.client} was fenced by nobody"))
    return fenced, found
