"""Fenced leases: who may write. Correctness never rests on a clock: a write carries the token, and the token only grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection, Row, select, update

from orchestrator.core.errors import Conflict
from orchestrator.core.units import format_duration
from orchestrator.ledger.audit import AuditLog
from orchestrator.ledger.database import Database
from orchestrator.ledger.rows import Holder, Lease, Owner, values_of
from orchestrator.ledger.schema import leases

_POLL_S: Final = 0.1


class Leases:
    """Leases by name. A dead holder of this machine is replaced at once, any other when its time is over."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    def acquire(
        self,
        name: str,
        owner: Owner,
        *,
        ttl_s: float = 60.0,
        wait_s: float = 0.0,
        on_wait: Callable[[Holder], None] | None = None,
        seize: bool = False,
    ) -> Lease:
        """Take the lease, waiting up to `wait_s`; `on_wait` hears of each holder that is waited for, once.

        With `seize` nobody is waited for: who holds it is fenced from now on, and learns it with its next write.

        Raises:
            Conflict: It is still held when the wait is over.
        """
        deadline = time.monotonic() + wait_s
        told = 0
        while True:
            taken = self._try(name, owner, ttl_s, seize=seize)
            if isinstance(taken, Lease):
                return taken
            if on_wait is not None and taken.token != told:
                told = taken.token
                on_wait(taken)
            while self._blocked(name):
                if time.monotonic() >= deadline:
                    raise _busy(taken)
                time.sleep(_POLL_S)

    @contextmanager
    def held(
        self,
        name: str,
        owner: Owner,
        *,
        ttl_s: float = 60.0,
        wait_s: float = 0.0,
        on_wait: Callable[[Holder], None] | None = None,
        seize: bool = False,
    ) -> Generator[Lease, None, None]:
        """Hold the lease for the length of a `with` block."""
        lease = self.acquire(name, owner, ttl_s=ttl_s, wait_s=wait_s, on_wait=on_wait, seize=seize)
        try:
            yield lease
        finally:
            self.release(lease)

    def renew(self, lease: Lease, *, ttl_s: float = 60.0) -> None:
        """Ask for `ttl_s` more, from now.

        Raises:
            Conflict: Someone else has taken it over.
        """
        with self._audit.fenced(lease, "renewal"), self._database.write() as connection:
            fence(connection, lease)
            now = self._database.now(connection)
            values = {"renewed_at": now, "expires_at": now + ttl_s}
            connection.execute(update(leases).where(leases.c.name == lease.name).values(values))

    def check(self, lease: Lease) -> None:
        """Raise `Conflict` when the lease is no longer ours."""
        with self._database.read() as connection:
            fence(connection, lease)

    def release(self, lease: Lease) -> None:
        """Give it back; does nothing when it is no longer ours. The token stays, so that it never returns."""
        ours = (leases.c.name == lease.name) & (leases.c.token == lease.token)
        with self._database.write() as connection:
            connection.execute(update(leases).where(ours).values(owner=None))

    def holder(self, name: str) -> Holder | None:
        """Return who holds the lease; an expired or dead holder still counts until it is replaced."""
        with self._database.read() as connection:
            row = _row(connection, name)
        return None if row is None or row.owner is None else _holder(row)

    def _try(self, name: str, owner: Owner, ttl_s: float, *, seize: bool) -> Lease | Holder:
        with self._database.write() as connection:
            now = self._database.now(connection)
            row = _row(connection, name)
            if row is not None and not seize and not _free(row, now):
                return _holder(row)
            lease = Lease(name, 1 if row is None else row.token + 1)
            values = {
                "name": name,
                "token": lease.token,
                "owner": values_of(owner),
                "acquired_at": now,
                "renewed_at": now,
                "expires_at": now + ttl_s,
            }
            self._database.put(connection, leases, [values])
            return lease

    def _blocked(self, name: str) -> bool:
        """Look without writing, so that many who wait do not hinder the one who works."""
        with self._database.read() as connection:
            row = _row(connection, name)
            return row is not None and not _free(row, self._database.now(connection))


def fence(connection: Connection, lease: Lease) -> None:
    """Refuse a writer whose lease has been taken over or given back; call it inside the writing transaction.

    Raises:
        Conflict: The token is not the current one.
    """
    row = _row(connection, lease.name)
    if row is not None and row.token == lease.token and row.owner is not None:
        return
    if row is None or row.owner is None:
        holder = "nobody"
    else:
        owner = _holder(row).owner
        holder = f"{owner.user}@{owner.host} (pid {owner.pid})"
    raise Conflict(
        f"lease {lease.name!r} is no longer ours: we hold token {lease.token}, the ledger is at "
        f"{0 if row is None else row.token}, held by {holder}",
        hint="someone else took over; nothing was written. Look at the status before you repeat the command",
        details={"lease": lease.name, "token": lease.token},
    )


def _row(connection: Connection, name: str) -> Row[tuple[object, ...]] | None:
    return connection.execute(select(leases).where(leases.c.name == name)).one_or_none()


def _free(row: Row[tuple[object, ...]], now: float) -> bool:
    return row.owner is None or row.expires_at <= now or _holder(row).owner.surely_dead()


def _holder(row: Row[tuple[object, ...]]) -> Holder:
    return Holder(
        name=row.name,
        token=row.token,
        owner=Owner(**row.owner),
        acquired_at=row.acquired_at,
        renewed_at=row.renewed_at,
        expires_at=row.expires_at,
    )


def _busy(holder: Holder) -> Conflict:
    owner = holder.owner
    what = f" for {owner.purpose}" if owner.purpose else ""
    held = format_duration(max(0.0, time.time() - holder.acquired_at))
    return Conflict(
        f"{holder.name!r} is held by {owner.user}@{owner.host} (pid {owner.pid}){what} since {held}",
        hint="wait for it to end, or stop that process; a dead one is taken over by itself",
        details={"lease": holder.name, "holder": values_of(owner)},
    )
