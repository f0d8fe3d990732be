"""Artifacts and what was made from what. Written by `Executions.record`, together with the step that made them."""

from __future__ import annotations

from sqlalchemy import select

from orchestrator.ledger.database import Database
from orchestrator.ledger.rows import ArtifactRow
from orchestrator.ledger.schema import artifacts, edges


class Artifacts:
    """The lineage of files."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, digest: str) -> ArtifactRow | None:
        """Return an artifact by its digest."""
        with self._database.read() as connection:
            row = connection.execute(select(artifacts).where(artifacts.c.digest == digest)).mappings().one_or_none()
        return None if row is None else ArtifactRow(**dict(row))

    def list(self, kind: str | None = None, *, limit: int = 100) -> tuple[ArtifactRow, ...]:
        """Return artifacts, the newest first."""
        query = select(artifacts).order_by(artifacts.c.created_at.desc(), artifacts.c.digest).limit(limit)
        if kind is not None:
            query = query.where(artifacts.c.kind == kind)
        with self._database.read() as connection:
            return tuple(ArtifactRow(**dict(row)) for row in connection.execute(query).mappings())

    def parents(self, digest: str) -> tuple[str, ...]:
        """Return the digests that this artifact was made from."""
        query = select(edges.c.parent).where(edges.c.child == digest).order_by(edges.c.parent)
        with self._database.read() as connection:
            return tuple(connection.execute(query).scalars())

    def children(self, digest: str) -> tuple[str, ...]:
        """Return the digests that were made from this artifact."""
        query = select(edges.c.child).where(edges.c.parent == digest).order_by(edges.c.child)
        with self._database.read() as connection:
            return tuple(connection.execute(query).scalars())
