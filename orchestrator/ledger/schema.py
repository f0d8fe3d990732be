"""Tables. One schema for SQLite and PostgreSQL; JSON is kept as canonical text, so that equal values are equal bytes.

Every name starts with `ledger_`, so that a team may keep MLflow's tables in the same PostgreSQL database.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    event,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from orchestrator.core.digests import canonical_json

metadata: Final = MetaData()
_BigId: Final = BigInteger().with_variant(Integer(), "sqlite")  # SQLite counts up only an INTEGER primary key


class JsonText(TypeDecorator[Any]):
    """A JSON value as canonical text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: object, dialect: Dialect) -> str | None:
        """Encode; raises TypeError or ValueError for what is not JSON (NaN included)."""
        del dialect
        return None if value is None else canonical_json(_plain(value)).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        """Decode."""
        del dialect
        return None if value is None else json.loads(value)


class MetricsText(TypeDecorator[Mapping[str, float]]):
    """Metrics by name; NaN and infinities, which JSON lacks, are kept as the texts that `float()` reads."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Mapping[str, float] | None, dialect: Dialect) -> str | None:
        """Encode."""
        del dialect
        if value is None:
            return None
        pairs = {name: float(number) for name, number in value.items()}
        return canonical_json({k: v if math.isfinite(v) else str(v) for k, v in pairs.items()}).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> dict[str, float]:
        """Decode."""
        del dialect
        return {} if value is None else {name: float(number) for name, number in json.loads(value).items()}


class Number(TypeDecorator[float]):
    """A double that may be NaN: SQLite keeps NaN as NULL, so NULL is read as NaN."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        """Encode; a NumPy scalar becomes a float, which SQLite would keep as bytes."""
        del dialect
        return None if value is None else float(value)

    def process_result_value(self, value: float | None, dialect: Dialect) -> float:
        """Decode."""
        del dialect
        return math.nan if value is None else value


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[object, object]", value).items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_plain(item) for item in cast("Sequence[object]", value)]
    return value


def one_per_endpoint(table: Table, name: str, where: str) -> None:
    """Let an endpoint have one row at most that `where` is true of.

    In SQL, which both databases read alike: an `Index` with a condition would import the dialects of both, for every command.
    """
    event.listen(table, "after_create", DDL(f"CREATE UNIQUE INDEX {name} ON {table.name} (endpoint) WHERE {where}"))


meta: Final = Table(
    "ledger_meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

leases: Final = Table(
    "ledger_leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("token", BigInteger, nullable=False),
    Column("owner", JsonText),  # null: nobody
    Column("acquired_at", Double, nullable=False),
    Column("renewed_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)

executions: Final = Table(
    "ledger_executions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("recipe", Text, nullable=False),
    Column("recipe_sha256", Text, nullable=False),
    Column("recipe_text", Text, nullable=False),
    Column("recipe_path", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("environment_sha256", Text, nullable=False),
    Column("plan", JsonText, nullable=False),
    Column("user", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("git", JsonText),
    Column("state", Text, nullable=False),
    Column("error", JsonText),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    Index("ledger_executions_by_recipe", "recipe", "created_at", "id"),
    Index("ledger_executions_by_time", "created_at", "id"),
)

steps: Final = Table(
    "ledger_steps",
    metadata,
    Column("execution", Text, ForeignKey(executions.c.id), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("action", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("fingerprint", Text),
    Column("parts", JsonText, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("outputs", JsonText, nullable=False),
    Column("metrics", MetricsText, nullable=False),
    Column("facts", JsonText, nullable=False),
    Column("verdict", JsonText),
    Column("error", JsonText),
    Column("started_at", Double),
    Column("ended_at", Double),
)

attempts: Final = Table(
    "ledger_attempts",
    metadata,
    Column("execution", Text, ForeignKey(executions.c.id), primary_key=True),
    Column("step", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", Text, nullable=False),
    Column("retry_class", Text),
    Column("error", JsonText),
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
)

events: Final = Table(
    "ledger_events",
    metadata,
    Column("seq", _BigId, primary_key=True, autoincrement=True),
    Column("execution", Text, ForeignKey(executions.c.id), nullable=False),
    Column("step", Text),
    Column("type", Text, nullable=False),
    Column("t", Double, nullable=False),
    Column("payload", JsonText, nullable=False),
    Index("ledger_events_by_execution", "execution", "seq"),
    sqlite_autoincrement=True,  # a seq is never given twice, so that a reader's cursor stays true
)

metrics: Final = Table(
    "ledger_metrics",
    metadata,
    Column("execution", Text, ForeignKey(executions.c.id), primary_key=True),
    Column("step", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("step_number", BigInteger, primary_key=True, autoincrement=False),
    Column("value", Number),
    Column("t", Double, nullable=False),
)

artifacts: Final = Table(
    "ledger_artifacts",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("media_type", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("execution", Text),
    Column("step", Text),
    Column("output", Text),
    Column("created_at", Double, nullable=False),
)

edges: Final = Table(
    "ledger_edges",
    metadata,
    Column("child", Text, primary_key=True),
    Column("parent", Text, primary_key=True),
    Index("ledger_edges_by_parent", "parent"),
)

generations: Final = Table(
    "ledger_generations",
    metadata,
    Column("endpoint", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("site", Text, nullable=False),
    Column("pool", Text, nullable=False),
    Column("bundle", Text, nullable=False),
    Column("artifact", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("runtime", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("variant", Text, nullable=False, server_default=""),  # empty: the bundle's own graph is served
    Column("variant_artifact", Text, nullable=False, server_default=""),
    Column("variant_path", Text, nullable=False, server_default=""),
    Column("builds", JsonText, nullable=False, server_default="[]"),  # one per SoC where the pool has several
    Column("kind", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("evidence", JsonText, nullable=False),
    Column("state", Text, nullable=False),
    Column("error", JsonText),
    Column("created_at", Double, nullable=False),
    Column("changed_at", Double, nullable=False),
    UniqueConstraint("endpoint", "request_id", name="ledger_generations_one_per_request"),
    CheckConstraint("number >= 1", name="ledger_generations_from_one"),
)
for _state in ("live", "staged"):
    one_per_endpoint(generations, f"ledger_generations_one_{_state}", f"state = '{_state}'")

scales: Final = Table(
    "ledger_scales",
    metadata,
    Column("endpoint", Text, primary_key=True),
    Column("slots", Integer, nullable=False),
)

table_versions: Final = Table(
    "ledger_table_versions",
    metadata,
    Column("site", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
)

audit: Final = Table(
    "ledger_audit",
    metadata,
    Column("seq", _BigId, primary_key=True, autoincrement=False),
    Column("t", Double, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", JsonText, nullable=False),
    Column("previous", Text, nullable=False),
    Column("hash", Text, nullable=False),
)

projections: Final = Table(
    "ledger_projections",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
