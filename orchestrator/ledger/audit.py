"""The audit chain: each row carries the hash of the one before it, so that a changed or removed row shows."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, select

from orchestrator.core.digests import canonical_json, sha256_json
from orchestrator.core.errors import Conflict, IntegrityError, LedgerError
from orchestrator.core.files import write_atomic
from orchestrator.ledger.database import Database
from orchestrator.ledger.rows import AuditHead, AuditRow, Lease, values_of
from orchestrator.ledger.schema import audit

_RECENT: Final = 64
"""How many rows back a refusal counts as the same one again."""
_PAGE: Final = 1000


class AuditLog:
    """Who did what, in order. The chain starts from the ledger's identity, so that it cannot be moved to another."""

    def __init__(self, database: Database, identity: str) -> None:
        self._database = database
        self._identity = identity
        self._genesis = _genesis(identity)

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

    @contextmanager
    def refusals(self, actor: str, subject: str, asked: Mapping[str, Any]) -> Generator[None, None, None]:
        """Record a `Conflict` of the body, which wrote nothing itself; the same one again soon after is one row.

        The record is not allowed to hide the refusal: where it cannot be written, only the refusal is raised.
        """
        try:
            yield
        except Conflict as refusal:
            detail = {**asked, "refusal": refusal.message, **refusal.details}
            with suppress(LedgerError), self._database.write() as connection:
                if not self._recent(connection, actor, "refused", subject, detail):
                    self.append_in(connection, actor, "refused", subject, detail)
            raise

    def fenced(self, lease: Lease | None, what: str) -> AbstractContextManager[None]:
        """Record that a former holder was refused where a write does not say who makes it."""
        if lease is None:
            return nullcontext()
        return self.refusals(f"holder of token {lease.token}", lease.name, {"write": what})

    def _recent(self, connection: Connection, actor: str, action: str, subject: str, detail: Mapping[str, Any]) -> bool:
        query = select(audit.c.actor, audit.c.action, audit.c.subject, audit.c.detail).order_by(audit.c.seq.desc())
        wanted = canonical_json({"row": [actor, action, subject, detail]})
        return any(
            canonical_json({"row": list(found)}) == wanted
            for found in connection.execute(query.limit(_RECENT)).tuples()
        )

    def lines(self) -> Iterator[str]:
        """Yield the whole log as JSON lines: one that names the ledger, then a line per row."""
        yield canonical_json({"ledger": self._identity}).decode()
        after = 0
        while rows := self.rows(after_seq=after, limit=_PAGE):
            yield from (canonical_json(values_of(row)).decode() for row in rows)
            after = rows[-1].seq

    def export(self, path: Path) -> AuditHead:
        """Write the log as a file of JSON lines, which `verify_lines` checks without the ledger; returns its head.

        Raises:
            IntegrityError: The chain is broken; nothing is written.
        """
        text = list(self.lines())
        head = verify_lines(text, place=self._database.name)
        write_atomic(path, "".join(f"{line}\n" for line in text).encode())
        return head

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
        query = select(audit).order_by(audit.c.seq).execution_options(yield_per=_PAGE)
        with self._database.read() as connection:
            found = connection.execute(query).mappings()
            return _verify(self._genesis, (dict(row) for row in found), self._database.name)


def verify_lines(lines: Iterable[str], *, place: str = "") -> AuditHead:
    """Check an exported log.

    Raises:
        IntegrityError: A line was changed, removed or inserted; names the first row. A cut at the end does not show:
            compare the head with one that was kept elsewhere.
    """
    parsed = (json.loads(line) for line in lines)
    first = next(parsed, None)
    if not isinstance(first, dict) or list(first) != ["ledger"]:  # pyright: ignore[reportUnknownArgumentType]
        raise IntegrityError("the export does not begin with its ledger", place=place, hint="export it again")
    return _verify(_genesis(str(first["ledger"])), parsed, place)  # pyright: ignore[reportUnknownArgumentType]


def _genesis(identity: str) -> str:
    return sha256_json({"ledger": identity})


def _verify(genesis: str, rows: Iterable[Mapping[Any, Any]], place: str) -> AuditHead:
    head = AuditHead(0, genesis)
    for found in rows:
        row = _row(found)
        body = {name: value for name, value in found.items() if name != "hash"}
        if row.seq != head.count + 1 or row.previous != head.hash or row.hash != sha256_json(body):
            raise IntegrityError(
                f"the audit chain breaks at row {row.seq} ({row.action} {row.subject})",
                place=place,
                hint="the ledger was changed by hand or is damaged; compare it with a backup",
            )
        head = AuditHead(row.seq, row.hash)
    return head


def _row(values: Mapping[Any, Any]) -> AuditRow:
    return AuditRow(**values)
