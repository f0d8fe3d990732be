"""The audit chain: each row carries the hash of the one before it, so that a changed or removed row shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select

from orchestrator.core.digests import sha256_json
from orchestrator.core.errors import IntegrityError
from orchestrator.ledger.database import Database
from orchestrator.ledger.rows import AuditHead, AuditRow
from orchestrator.ledger.schema import audit


class AuditLog:
    """Who did what, in order. The chain starts from the ledger's identity, so that it cannot be moved to another."""

    def __init__(self, database: Database, identity: str) -> None:
        self._database = database
        self._genesis = sha256_json({"ledger": identity})

    def append(self, actor: str, action: str, subject: str, detail: Mapping[str, Any] | None = None) -> AuditRow:
        """Add a row in a transaction of its own."""
        with self._database.write() as connection:
            return self.append_in(connection, actor, action, subject, detail or {})

    def append_in(
        self, connection: Connection, actor: str, action: str, subject: str, detail: Mapping[str, Any]
    ) -> AuditRow:
        """Add a row to a running write transaction: what is recorded and its record stand or fall together."""
        last = connection.execute(select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)).one_or_none()
        body: dict[str, Any] = {
            "seq": 1 if last is None else last.seq + 1,
            "t": self._database.now(connection),
            "actor": actor,
            "action": action,
            "subject": subject,
            "detail": dict(detail),
            "previous": self._genesis if last is None else last.hash,
        }
        row = AuditRow(**body, hash=sha256_json(body))
        connection.execute(audit.insert().values(**body, hash=row.hash))
        return row

    def rows(self, *, after_seq: int = 0, limit: int = 1000) -> tuple[AuditRow, ...]:
        """Return rows in order, from the one after `after_seq`."""
        query = select(audit).where(audit.c.seq > after_seq).order_by(audit.c.seq).limit(limit)
        with self._database.read() as connection:
            return tuple(_row(dict(found)) for found in connection.execute(query).mappings())

    def verify(self) -> AuditHead:
        """Recompute the whole chain.

        Raises:
            IntegrityError: A row was changed, removed or inserted; names the first one.
        """
        head = AuditHead(0, self._genesis)
        query = select(audit).order_by(audit.c.seq).execution_options(yield_per=1000)
        with self._database.read() as connection:
            for found in connection.execute(query).mappings():
                row = _row(dict(found))
                body = {name: value for name, value in found.items() if name != "hash"}
                if row.seq != head.count + 1 or row.previous != head.hash or row.hash != sha256_json(body):
                    raise IntegrityError(
                        f"the audit chain breaks at row {row.seq} ({row.action} {row.subject})",
                        place=self._database.name,
                        hint="the ledger was changed by hand or is damaged; compare it with a backup",
                    )
                head = AuditHead(row.seq, row.hash)
        return head


def _row(values: Mapping[Any, Any]) -> AuditRow:
    return AuditRow(**values)
