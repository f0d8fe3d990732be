"""The schema's version: a new ledger is created, an older one is brought up step by step, a newer one is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from sqlalchemy import Connection, inspect, select, text

from orchestrator.core.errors import LedgerError
from orchestrator.core.ids import new_token
from orchestrator.ledger import rollout_schema, schema
from orchestrator.ledger.database import Database

Migration = Callable[[Connection], None]


def _add_variants(connection: Connection) -> None:
    """Version 2: a generation may load a variant in place of its bundle's graph."""
    for name in ("variant", "variant_artifact", "variant_path"):
        connection.execute(text(f"ALTER TABLE ledger_generations ADD COLUMN {name} TEXT NOT NULL DEFAULT ''"))


def _add_scales(connection: Connection) -> None:
    """Version 3: a generation may have a build for each SoC of its pool, an endpoint may take a part of its pool's slots."""
    connection.execute(text("ALTER TABLE ledger_generations ADD COLUMN builds TEXT NOT NULL DEFAULT '[]'"))
    schema.scales.create(connection)


def _add_rollouts(connection: Connection) -> None:
    """Version 4: a generation is rolled out step by step, on evidence."""
    schema.metadata.create_all(connection, tables=[rollout_schema.rollouts, rollout_schema.evidence])


MIGRATIONS: Final[Mapping[int, Migration]] = {1: _add_variants, 2: _add_scales, 3: _add_rollouts}
"""`n: step` brings a ledger of version n to n + 1; every released version stays here for ever."""

VERSION: Final = 1 + len(MIGRATIONS)
"""What this program reads and writes."""


def prepare(database: Database, *, version: int = VERSION, migrations: Mapping[int, Migration] = MIGRATIONS) -> str:
    """Create or migrate the ledger, in one transaction, and return its identity.

    Raises:
        LedgerError: It was written by a newer program, or its version cannot be read.
    """
    with database.read() as connection:
        found = _found(connection, database)
        identity = _meta(connection, "id") if found == version else None
    if identity is not None:
        return identity
    with database.write() as connection:
        found = _found(connection, database)  # another process may have been faster
        if found == 0:
            schema.metadata.create_all(connection, checkfirst=False)
            values = [{"key": "id", "value": new_token(16)}, {"key": "schema", "value": str(version)}]
            connection.execute(schema.meta.insert(), values)
        elif found > version:
            raise _too_new(found, version, database)
        for number in range(found, version) if found else ():
            migrations[number](connection)
        database.put(connection, schema.meta, [{"key": "schema", "value": str(version)}])
        return _meta(connection, "id") or ""


def _found(connection: Connection, database: Database) -> int:
    """Return the ledger's version; 0 when there is none."""
    if not inspect(connection).has_table(schema.meta.name):
        return 0
    value = _meta(connection, "schema")
    if value is None or not value.isdecimal():
        raise LedgerError(
            f"the ledger's schema version reads {value!r}", place=database.name, hint="restore it from a backup"
        )
    return int(value)


def _too_new(found: int, version: int, database: Database) -> LedgerError:
    return LedgerError(
        f"the ledger has schema version {found}, this program knows version {version} at most",
        place=database.name,
        hint="upgrade the orchestrator; a newer one has already written here",
        details={"found": found, "supported": version},
    )


def _meta(connection: Connection, key: str) -> str | None:
    return connection.execute(select(schema.meta.c.value).where(schema.meta.c.key == key)).scalar_one_or_none()
