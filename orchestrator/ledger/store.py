"""`Ledger`: one database, one small class per concern."""

from __future__ import annotations

from types import TracebackType

from orchestrator.ledger.artifacts import Artifacts
from orchestrator.ledger.audit import AuditLog
from orchestrator.ledger.database import Database
from orchestrator.ledger.executions import Executions
from orchestrator.ledger.generations import Generations
from orchestrator.ledger.leases import Leases
from orchestrator.ledger.migrations import prepare
from orchestrator.ledger.projections import Projections
from orchestrator.ledger.rollouts import Rollouts


class Ledger:
    """The truth. Safe to use from several threads and processes; open it again after a fork."""

    def __init__(self, database: Database, identity: str) -> None:
        self._database = database
        self.identity = identity
        self.audit = AuditLog(database, identity)
        self.leases = Leases(database, self.audit)
        self.executions = Executions(database)
        self.artifacts = Artifacts(database)
        self.rollouts = Rollouts(database, self.audit)
        self.generations = Generations(database, self.audit, self.rollouts)
        self.projections = Projections(database)

    @classmethod
    def open(cls, url: str, *, busy_timeout_s: float = 30.0) -> Ledger:
        """Open, create or migrate the ledger at `sqlite:////path` or `postgresql://user@host/database`.

        Raises:
            LedgerError: The URL is wrong, the database does not answer, or a newer program wrote there.
        """
        database = Database(url, busy_timeout_s=busy_timeout_s)
        try:
            return cls(database, prepare(database))
        except BaseException:
            database.close()
            raise

    @property
    def url(self) -> str:
        """The URL without its password."""
        return self._database.name

    def now(self) -> float:
        """Return UTC seconds by the ledger's clock."""
        with self._database.read() as connection:
            return self._database.now(connection)

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
