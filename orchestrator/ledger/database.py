"""One way to read and write for SQLite and PostgreSQL: writers are serialised, so that what is read before a write holds.

SQLite: WAL, `synchronous=FULL`, `BEGIN IMMEDIATE`. PostgreSQL: a transaction-scoped advisory lock. Both wait for at
most `busy_timeout_s`, both number events in the order of commits, and both survive kill -9 at any instant.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, Table, create_engine, event, func, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError, StatementError
from sqlalchemy.exc import IntegrityError as RowRefused

from orchestrator.core.errors import LedgerError
from orchestrator.core.faults import point
from orchestrator.core.redact import redact_text
from orchestrator.ledger.writer import writer_of

_LOCK_KEY: Final = 0x6F72_6368_6C65_6467  # "orchledg"; advisory locks are per database
_BUSY: Final = ("database is locked", "lock timeout", "locknotavailable")


class Database:
    """An engine and the two kinds of transaction."""

    def __init__(self, url: str, *, busy_timeout_s: float) -> None:
        self._url = _parse(url)
        self._busy_timeout_s = busy_timeout_s
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._engine = self._sqlite_engine() if self.is_sqlite else self._postgres_engine()

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self._url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Generator[Connection, None, None]:
        """Open a transaction that only reads."""
        with self._translated(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Generator[Connection, None, None]:
        """Open the one write transaction; commits at the end, rolls back when the body raises.

        Raises:
            LedgerError: Busy for longer than the bound, unreachable, full, damaged, or a row was refused.
        """
        with self._translated(), self._engine.connect().execution_options(ledger_write=True) as connection:
            with connection.begin():
                if not self.is_sqlite:
                    connection.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
                yield connection
                point("ledger.before_commit")
            point("ledger.after_commit")

    def now(self, connection: Connection) -> float:
        """Return UTC seconds by the clock that all users of this ledger share."""
        if self.is_sqlite:
            return time.time()
        return float(connection.execute(text("select extract(epoch from clock_timestamp())")).scalar_one())

    def put(
        self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *, keep: bool = False
    ) -> None:
        """Insert rows; one with the same primary key is replaced, or kept as it is when `keep`."""
        if not rows:
            return
        keys = [column.name for column in table.primary_key]
        if self.is_sqlite:
            from sqlalchemy.dialects.sqlite import insert
        else:
            from sqlalchemy.dialects.postgresql import insert
        statement = insert(table)
        changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
        if keep or not changed:
            statement = statement.on_conflict_do_nothing(index_elements=keys)
        else:
            statement = statement.on_conflict_do_update(index_elements=keys, set_=changed)
        connection.execute(statement, [dict(row) for row in rows])

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise self._explain(error) from error

    def _explain(self, error: SQLAlchemyError) -> LedgerError:
        cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
        message = redact_text(str(cause)).strip()
        if any(word in f"{type(cause).__name__} {message}".lower() for word in _BUSY):
            return self._busy()
        if isinstance(error, RowRefused):
            hint = "this is a bug or a damaged ledger; nothing was written"
        elif isinstance(cause, sqlite3.DatabaseError):
            hint = "check the disk, the permissions and that the file is a ledger"
        else:
            hint = "check that the database answers at this URL and that this user may write to it"
        return LedgerError(f"the ledger refused: {message}", hint=hint, place=self.name)

    def _busy(self) -> LedgerError:
        text = f"the ledger stayed busy for {self._busy_timeout_s:g} s"
        writer = writer_of(Path(self._url.database or "").absolute()) if self.is_sqlite else None
        if writer is None:
            hint = "another process holds it open for writing; look for a stopped one, then try again"
            return LedgerError(text, hint=hint, place=self.name)
        details = {"writer": writer.to_json()}
        return LedgerError(
            f"{text}: {writer.text} holds it for writing", hint=writer.hint, place=self.name, details=details
        )

    def _sqlite_engine(self) -> Engine:
        path = Path(self._url.database or "").absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_private(path)
        except OSError as error:
            raise LedgerError(
                f"cannot open the ledger: {error.strerror}", place=str(path), hint="check the path and its permissions"
            ) from error
        engine = create_engine(self._url, connect_args={"timeout": self._busy_timeout_s})
        event.listen(engine, "connect", self._sqlite_connected)
        event.listen(engine, "begin", _sqlite_begin)
        return engine

    def _sqlite_connected(self, connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # our own BEGIN, below
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                # The switch of a new file to WAL ignores the busy time-out, and several processes may start at once.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise LedgerError(
                f"the file system gives journal mode {mode!r}, the ledger needs wal",
                place=self.name,
                hint="keep the ledger on a local disk, or use PostgreSQL",
            )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    def _postgres_engine(self) -> Engine:
        arguments = {"connect_timeout": 10, "application_name": "orchestrate"}
        engine = create_engine(self._url, pool_pre_ping=True, connect_args=arguments)
        event.listen(engine, "connect", self._postgres_connected)
        return engine

    def _postgres_connected(self, connection: Any, _record: object) -> None:
        millis = int(self._busy_timeout_s * 1000)
        with connection.cursor() as cursor:
            cursor.execute(
                f"set lock_timeout = {millis}; set idle_in_transaction_session_timeout = {max(millis, 1000)};"
                "set synchronous_commit = on; set default_transaction_isolation = 'read committed'"
            )
        connection.commit()


def _make_private(path: Path) -> None:
    """Make the file if there is none, private from the first byte on, without opening it.

    To close any descriptor of a database drops all locks that this process has on it: the next process that closes the
    database would take itself for the last user and delete the log into which we go on to commit
    (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    with suppress(FileExistsError):
        os.mknod(path, 0o600)


def _sqlite_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("ledger_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise LedgerError(
            "the ledger's URL cannot be read", hint="write sqlite:////path/ledger.db or postgresql://user@host/database"
        ) from error
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise LedgerError(
            f"the ledger cannot live in {parsed.render_as_string(hide_password=True)}",
            hint="write sqlite:////path/ledger.db or postgresql://user@host/database",
        )
    return parsed
