"""Rollouts: one active per endpoint. Their controller writes under the endpoint's lease, operators leave a wish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from sqlalchemy import Connection, func, select, update

from orchestrator.core.errors import Conflict
from orchestrator.ledger.audit import AuditLog
from orchestrator.ledger.database import Database
from orchestrator.ledger.leases import fence
from orchestrator.ledger.rollout_reading import (
    ACTIVE,
    active_in,
    busy,
    check_staged,
    ended,
    get_in,
    here,
    must_in,
    read_row,
    row_values,
    subject,
)
from orchestrator.ledger.rollout_rows import EvidenceRow, Intent, Rollout, RolloutState
from orchestrator.ledger.rollout_schema import evidence, rollouts
from orchestrator.ledger.rows import Lease
from orchestrator.ledger.schema import audit

_OPERATORS: Final = ("intent", "approvals")
_FIXED: Final = ("endpoint", "generation", "site", "pool", "stable", "strategy", "actor", "reason", "started_at")
_AUDITED: Final = ("state", "step", "weight", "mirror", "headers")


class Rollouts:
    """How far each walk from one generation to the next has come."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    def begin(self, rollout: Rollout, lease: Lease) -> Rollout:
        """Add a rollout; its times are set here. A repeat for the same generation returns the first one.

        Raises:
            Conflict: Fenced, another rollout of the endpoint is active, or the generation has failed or served already.
        """
        asked = {"state": "begin"}
        with self._audit.refusals(rollout.actor, subject(rollout), asked), self._database.write() as connection:
            fence(connection, lease)
            known = get_in(connection, rollout.endpoint, rollout.generation)
            if known is not None:
                return known
            active = active_in(connection, rollout.endpoint)
            if active is not None:
                raise busy(active)
            check_staged(connection, rollout)
            now = self._database.now(connection)
            begun = replace(rollout, step_started_at=now, progressed_at=now, started_at=now, intent="", approvals=())
            connection.execute(rollouts.insert().values(row_values(begun)))
            facts = {name: row_values(begun)[name] for name in ("stable", "strategy", "reason", *_AUDITED)}
            self._audit.append_in(connection, begun.actor, "rollout.begin", subject(begun), facts)
            return begun

    def save(self, rollout: Rollout, lease: Lease) -> Rollout:
        """Write what the controller has decided, and return it with what operators have left meanwhile.

        A new `step` sets the times of the step, an end its time. What was fixed at the beginning stays.

        Raises:
            Conflict: Fenced, or it has ended.
            LedgerError: There is no such rollout.
        """
        asked = {"state": rollout.state.value, "step": rollout.step, "weight": rollout.weight}
        with self._audit.refusals(rollout.actor, subject(rollout), asked), self._database.write() as connection:
            fence(connection, lease)
            known = must_in(connection, rollout.endpoint, rollout.generation)
            if not known.state.active:
                same = replace(rollout, intent=known.intent, approvals=known.approvals, ended_at=known.ended_at)
                if same == known:
                    return known
                raise ended(known)
            return self._write(connection, known, rollout, rollout.actor)

    def _write(self, connection: Connection, known: Rollout, wanted: Rollout, actor: str) -> Rollout:
        now = self._database.now(connection)
        kept = {name: getattr(known, name) for name in (*_FIXED, *_OPERATORS)}
        wanted = replace(wanted, **kept)
        if wanted.step != known.step:
            wanted = replace(wanted, step_started_at=now, progressed_at=now)
        if not wanted.state.active:
            wanted = replace(wanted, ended_at=now, intent="")
        values = {
            name: value for name, value in row_values(wanted).items() if name not in _FIXED and name != "approvals"
        }
        if wanted.state.active:
            del values["intent"]
        connection.execute(update(rollouts).where(here(wanted)).values(values))
        before, after = row_values(known), row_values(wanted)
        changed = {name: after[name] for name in _AUDITED if before[name] != after[name]}
        if changed:
            facts = changed | ({"error": wanted.error} if wanted.error else {}) | {"waiting": wanted.waiting}
            action = f"rollout.{wanted.state}" if "state" in changed else "rollout.step"
            self._audit.append_in(connection, actor, action, subject(wanted), facts)
        return wanted

    def ask(
        self, endpoint: str, intent: Intent, *, actor: str, reason: str = "", generation: int | None = None
    ) -> Rollout:
        """Leave an operator's wish for the controller; the last one counts, but none takes an abort back. Idempotent.

        Raises:
            Conflict: Nothing is being rolled out there, or another generation than the given one, or it is to be aborted.
        """
        with self._database.write() as connection:
            known = active_in(connection, endpoint)
            if known is None or generation not in (None, known.generation):
                what = "nothing" if known is None else f"generation {known.generation}"
                raise Conflict(
                    f"{what} is being rolled out at endpoint {endpoint!r}",
                    hint="look at `orchestrate rollout status`; a rollout that has ended cannot be changed",
                    details={"endpoint": endpoint, "active": 0 if known is None else known.generation},
                )
            if known.intent == intent:
                return known
            if known.intent == "abort":
                raise Conflict(
                    f"the rollout of generation {known.generation} of {endpoint!r} is being aborted",
                    hint="promote the model again once it has ended",
                )
            connection.execute(update(rollouts).where(here(known)).values(intent=intent))
            facts = {"intent": intent, "reason": reason}
            self._audit.append_in(connection, actor, "rollout.ask", subject(known), facts)
            return replace(known, intent=intent)

    def wish(self, endpoint: str, generation: int) -> str:
        """Return who has left the last wish, and why: `ada: wrong labels`; empty where nobody has."""
        query = (
            select(audit.c.actor, audit.c.detail)
            .where((audit.c.subject == f"{endpoint}/{generation}") & (audit.c.action == "rollout.ask"))
            .order_by(audit.c.seq.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            found = connection.execute(query).tuples().first()
        if found is None:
            return ""
        actor, detail = str(found[0]), cast("Mapping[str, Any]", found[1] or {})
        return f"{actor}: {detail['reason']}" if detail.get("reason") else actor

    def answered(self, endpoint: str, generation: int, intent: str, lease: Lease) -> None:
        """The wish has been carried out: forget it, unless another has come meanwhile.

        Raises:
            Conflict: Fenced.
        """
        found = (rollouts.c.endpoint == endpoint) & (rollouts.c.generation == generation)
        with self._audit.fenced(lease, "answer"), self._database.write() as connection:
            fence(connection, lease)
            connection.execute(update(rollouts).where(found & (rollouts.c.intent == intent)).values(intent=""))

    def decide(self, endpoint: str, generation: int, approval: Mapping[str, Any], *, actor: str) -> Rollout:
        """Add an approval or a rejection: {identity, decision, step, bundle, reason}; its time is set here. Idempotent.

        Raises:
            Conflict: The rollout has ended, or this identity has decided otherwise about this step.
            LedgerError: There is no such rollout.
        """
        with self._database.write() as connection:
            known = must_in(connection, endpoint, generation)
            same = next(
                (a for a in known.approvals if all(a.get(key) == approval.get(key) for key in ("identity", "step"))),
                None,
            )
            if same is not None:
                if same.get("decision") == approval.get("decision"):
                    return known
                raise Conflict(
                    f"{approval.get('identity')} has already said {same.get('decision')!r} here",
                    hint="abort the rollout to take an approval back",
                )
            if not known.state.active:
                raise ended(known)
            row = {**approval, "t": self._database.now(connection)}
            approvals = (*known.approvals, row)
            connection.execute(update(rollouts).where(here(known)).values(approvals=list(approvals)))
            self._audit.append_in(connection, actor, f"rollout.{approval.get('decision')}", subject(known), row)
            return replace(known, approvals=approvals)

    def active(self, endpoint: str) -> Rollout | None:
        """Return the rollout of an endpoint that has not ended."""
        with self._database.read() as connection:
            return active_in(connection, endpoint)

    def all_active(self, site: str | None = None) -> tuple[Rollout, ...]:
        """Return all rollouts that have not ended, of one site or of all."""
        query = select(rollouts).where(ACTIVE).order_by(rollouts.c.endpoint)
        if site is not None:
            query = query.where(rollouts.c.site == site)
        with self._database.read() as connection:
            return tuple(read_row(dict(row)) for row in connection.execute(query).mappings())

    def get(self, endpoint: str, generation: int) -> Rollout | None:
        """Return the rollout of a generation; None where it went live without one."""
        with self._database.read() as connection:
            return get_in(connection, endpoint, generation)

    def list(self, endpoint: str) -> tuple[Rollout, ...]:
        """Return all rollouts of an endpoint, by generation."""
        query = select(rollouts).where(rollouts.c.endpoint == endpoint).order_by(rollouts.c.generation)
        with self._database.read() as connection:
            return tuple(read_row(dict(row)) for row in connection.execute(query).mappings())

    def add_evidence(self, endpoint: str, generation: int, rows: Sequence[Mapping[str, Any]], lease: Lease) -> None:
        """Append what was counted; nothing of it ever changes.

        Raises:
            Conflict: Fenced.
        """
        if not rows:
            return
        found = (evidence.c.endpoint == endpoint) & (evidence.c.generation == generation)
        with self._audit.fenced(lease, "evidence"), self._database.write() as connection:
            fence(connection, lease)
            last = connection.execute(select(func.max(evidence.c.seq)).where(found)).scalar_one() or 0
            now = self._database.now(connection)
            connection.execute(
                evidence.insert(),
                [
                    {"endpoint": endpoint, "generation": generation, "seq": seq, "t": now, "body": dict(row)}
                    for seq, row in enumerate(rows, last + 1)
                ],
            )

    def evidence(
        self, endpoint: str, generation: int, *, after: int = 0, limit: int = 100_000
    ) -> tuple[EvidenceRow, ...]:
        """Return what was counted, oldest first, from the row after `after`."""
        found = (evidence.c.endpoint == endpoint) & (evidence.c.generation == generation) & (evidence.c.seq > after)
        query = select(evidence.c.seq, evidence.c.t, evidence.c.body).where(found).order_by(evidence.c.seq).limit(limit)
        with self._database.read() as connection:
            return tuple(EvidenceRow(*row) for row in connection.execute(query).tuples())

    def end_in(
        self,
        connection: Connection,
        endpoint: str,
        error: Mapping[str, Any],
        actor: str,
        *,
        only: int | None = None,
        other_than: int | None = None,
    ) -> None:
        """End what is active at an endpoint as aborted, inside a running write transaction."""
        known = active_in(connection, endpoint)
        if known is not None and only in (None, known.generation) and other_than != known.generation:
            over = replace(known, state=RolloutState.ABORTED, weight=0, mirror=0, headers=(), waiting=None, error=error)
            self._write(connection, known, over, actor)
