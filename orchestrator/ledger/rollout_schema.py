"""Tables of rollouts, part of the one schema."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Column, Double, Integer, Table, Text

from orchestrator.ledger.schema import JsonText, metadata, one_per_endpoint

rollouts: Final = Table(
    "ledger_rollouts",
    metadata,
    Column("endpoint", Text, primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("site", Text, nullable=False),
    Column("pool", Text, nullable=False),
    Column("stable", Integer, nullable=False),
    Column("strategy", JsonText, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("step_started_at", Double, nullable=False),
    Column("progressed_at", Double, nullable=False),
    Column("weight", Integer, nullable=False),
    Column("mirror", Integer, nullable=False),
    Column("headers", JsonText, nullable=False),
    Column("waiting", JsonText),
    Column("verdict", JsonText),
    Column("error", JsonText),
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("intent", Text, nullable=False),
    Column("approvals", JsonText, nullable=False),
    Column("notes", JsonText, nullable=False),
    CheckConstraint("weight between 0 and 100 and mirror between 0 and 100", name="ledger_rollouts_percent"),
)
one_per_endpoint(rollouts, "ledger_rollouts_one_active", "state in ('progressing', 'paused')")

evidence: Final = Table(
    "ledger_evidence",
    metadata,
    Column("endpoint", Text, primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("t", Double, nullable=False),
    Column("body", JsonText, nullable=False),
)
