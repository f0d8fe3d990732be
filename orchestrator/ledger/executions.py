"""Executions, their steps, attempts, events and metrics, and the artifacts that they made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, func, select, update

from orchestrator.core.errors import LedgerError
from orchestrator.ledger import schema
from orchestrator.ledger.database import Database
from orchestrator.ledger.leases import fence
from orchestrator.ledger.rows import (
    ArtifactRow,
    AttemptRow,
    EventRow,
    ExecutionRow,
    ExecutionUpdate,
    Lease,
    MetricRow,
    StepRow,
    values_of,
)

RowType = TypeVar("RowType")


class Executions:
    """What ran, why, and what came of it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, row: ExecutionRow, lease: Lease) -> None:
        """Write a new execution; a repeat of the very same row does nothing.

        Raises:
            Conflict: Fenced.
        """
        with self._database.write() as connection:
            fence(connection, lease)
            self._database.put(connection, schema.executions, [values_of(row)], keep=True)

    def record(
        self,
        lease: Lease,
        *,
        execution: ExecutionUpdate | None = None,
        steps: Sequence[StepRow] = (),
        attempts: Sequence[AttemptRow] = (),
        events: Sequence[EventRow] = (),
        metrics: Sequence[MetricRow] = (),
        artifacts: Sequence[ArtifactRow] = (),
        edges: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Write one transition: all of it or nothing. Rows are replaced by key, artifacts keep their first origin.

        An edge is (child digest, parent digest): the child was made from the parent.

        Raises:
            Conflict: Fenced; nothing is written.
            LedgerError: The execution is unknown.
        """
        with self._database.write() as connection:
            fence(connection, lease)
            if execution is not None:
                _update(connection, execution)
            self._database.put(connection, schema.steps, [values_of(row) for row in steps])
            self._database.put(connection, schema.attempts, [values_of(row) for row in attempts])
            self._database.put(connection, schema.artifacts, [values_of(row) for row in artifacts], keep=True)
            self._database.put(connection, schema.edges, [{"child": c, "parent": p} for c, p in edges], keep=True)
            self._observe(connection, events, metrics)

    def set_state(
        self,
        execution: str,
        state: str,
        lease: Lease,
        *,
        error: Mapping[str, Any] | None = None,
        ended_at: float | None = None,
    ) -> None:
        """Change the state of an execution."""
        self.record(lease, execution=ExecutionUpdate(id=execution, state=state, error=error, ended_at=ended_at))

    def append_events(self, events: Sequence[EventRow]) -> int:
        """Append events and return the last seq. No lease: an observation decides nothing."""
        with self._database.write() as connection:
            self._observe(connection, events, ())
            return connection.execute(select(func.max(schema.events.c.seq))).scalar_one_or_none() or 0

    def append_metrics(self, metrics: Sequence[MetricRow]) -> None:
        """Write metrics; the same (execution, step, name, step_number) again replaces the value."""
        with self._database.write() as connection:
            self._observe(connection, (), metrics)

    def get(self, execution: str) -> ExecutionRow:
        """Return an execution.

        Raises:
            LedgerError: There is none of this id.
        """
        query = select(schema.executions).where(schema.executions.c.id == execution)
        found = self._rows(ExecutionRow, query)
        if not found:
            raise LedgerError(f"no execution {execution!r}", hint="`orchestrate status` lists them")
        return found[0]

    def list(self, recipe: str | None = None, *, limit: int = 20) -> tuple[ExecutionRow, ...]:
        """Return executions, the newest first."""
        table = schema.executions
        query = select(table).order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit)
        return self._rows(ExecutionRow, query if recipe is None else query.where(table.c.recipe == recipe))

    def latest(self, recipe: str | None = None) -> ExecutionRow | None:
        """Return the newest execution."""
        return next(iter(self.list(recipe, limit=1)), None)

    def steps(self, execution: str) -> tuple[StepRow, ...]:
        """Return the steps of an execution in the order of its plan."""
        table = schema.steps
        query = select(table).where(table.c.execution == execution)
        return self._rows(StepRow, query.order_by(table.c.position, table.c.name))

    def previous_step(self, recipe: str, step: str) -> StepRow | None:
        """Return the step as the newest execution left it that knew its fingerprint."""
        table, executions = schema.steps, schema.executions
        known = (executions.c.recipe == recipe) & (table.c.name == step) & table.c.fingerprint.is_not(None)
        query = select(table).join(executions, executions.c.id == table.c.execution).where(known)
        newest = query.order_by(executions.c.created_at.desc(), executions.c.id.desc()).limit(1)
        return next(iter(self._rows(StepRow, newest)), None)

    def attempts(self, execution: str, step: str | None = None) -> tuple[AttemptRow, ...]:
        """Return the attempts of an execution, or of one of its steps."""
        table = schema.attempts
        query = select(table).where(table.c.execution == execution).order_by(table.c.step, table.c.number)
        return self._rows(AttemptRow, query if step is None else query.where(table.c.step == step))

    def events(self, execution: str | None = None, *, after_seq: int = 0, limit: int = 1000) -> tuple[EventRow, ...]:
        """Return events in the order of their commits, from the one after `after_seq`."""
        table = schema.events
        query = select(table).where(table.c.seq > after_seq).order_by(table.c.seq).limit(limit)
        return self._rows(EventRow, query if execution is None else query.where(table.c.execution == execution))

    def metrics(self, execution: str, step: str | None = None) -> tuple[MetricRow, ...]:
        """Return metric values by step, name and step number."""
        table = schema.metrics
        query = select(table).where(table.c.execution == execution)
        query = query.order_by(table.c.step, table.c.name, table.c.step_number)
        return self._rows(MetricRow, query if step is None else query.where(table.c.step == step))

    def _observe(self, connection: Connection, events: Sequence[EventRow], metrics: Sequence[MetricRow]) -> None:
        if events:
            rows = [values_of(row) for row in events]
            connection.execute(schema.events.insert(), [{k: v for k, v in r.items() if k != "seq"} for r in rows])
        self._database.put(connection, schema.metrics, [values_of(row) for row in metrics])

    def _rows(self, kind: type[RowType], query: Select[Any]) -> tuple[RowType, ...]:
        with self._database.read() as connection:
            return tuple(kind(**dict(row)) for row in connection.execute(query).mappings())


def _update(connection: Connection, change: ExecutionUpdate) -> None:
    table = schema.executions
    values = {"state": change.state, "error": change.error, "ended_at": change.ended_at}
    if connection.execute(update(table).where(table.c.id == change.id).values(values)).rowcount != 1:
        raise LedgerError(f"no execution {change.id!r}", hint="create it before its state is set")
