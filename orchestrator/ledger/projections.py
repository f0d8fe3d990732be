"""What other systems call our things: MLflow run, model and experiment ids by our key. A cache that may be lost."""

from __future__ import annotations

from sqlalchemy import select

from orchestrator.ledger.database import Database
from orchestrator.ledger.schema import projections


class Projections:
    """Foreign ids by key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, key: str) -> str | None:
        """Return the foreign id."""
        query = select(projections.c.value).where(projections.c.key == key)
        with self._database.read() as connection:
            return connection.execute(query).scalar_one_or_none()

    def put(self, key: str, value: str) -> None:
        """Remember a foreign id; replaces an earlier one."""
        with self._database.write() as connection:
            self._database.put(connection, projections, [{"key": key, "value": value}])

    def list(self, prefix: str) -> dict[str, str]:
        """Return the ids whose keys start with `prefix`, by key."""
        query = select(projections).where(projections.c.key.startswith(prefix, autoescape=True))
        with self._database.read() as connection:
            return {row.key: row.value for row in connection.execute(query.order_by(projections.c.key))}
