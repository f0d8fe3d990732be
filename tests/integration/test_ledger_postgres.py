"""What only a server can do to a ledger: restart, crash, end a client that stands still, share its database."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psycopg
import pytest
from support.forked import start_forked
from support.ledger_samples import execution, request
from support.postgres import PostgresServer, postgres_server

from orchestrator.core.errors import LedgerError
from orchestrator.ledger import GenerationState, Ledger, Owner

__all__ = ["postgres_server"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_an_open_ledger_survives_a_restart_of_the_server(postgres_server: PostgresServer, how: signal.Signals) -> None:
    with Ledger.open(postgres_server.database()) as ledger:
        lease = ledger.leases.acquire("endpoint/digits", Owner.here())
        made = ledger.generations.append(request(), lease)
        postgres_server.stop(how)
        with pytest.raises(LedgerError, match="refused") as caught:
            ledger.generations.list("digits")
        assert "answers at this URL" in caught.value.hint
        postgres_server.start()
        ledger.generations.set_state("digits", made.number, GenerationState.LIVE, lease, actor="ada")
        assert ledger.audit.verify().count == 2


def test_a_stopped_writer_is_ended_by_the_server_and_others_go_on(postgres_server: PostgresServer) -> None:
    url = postgres_server.database()
    Ledger.open(url).close()

    def stop_in_the_middle() -> None:
        with Ledger.open(url, busy_timeout_s=1) as mine, mine._database.write() as connection:
            mine._database.now(connection)
            os.kill(os.getpid(), signal.SIGSTOP)

    writer = start_forked(stop_in_the_middle)
    try:
        while ") T " not in Path(f"/proc/{writer.pid}/stat").read_text():
            assert writer.is_alive()
            time.sleep(0.01)
        started = time.monotonic()
        with Ledger.open(url, busy_timeout_s=20) as other:
            other.projections.put("a", "b")
        assert time.monotonic() - started < 10
    finally:
        writer.kill()
        writer.join()


def test_a_database_shared_with_other_tables(postgres_server: PostgresServer) -> None:
    url = postgres_server.database()
    with psycopg.connect(url, autocommit=True) as connection:
        for name in ("metrics", "experiments", "events"):
            connection.execute(f"create table {name} (id int primary key)".encode())
    with Ledger.open(url) as ledger:
        ledger.executions.create(execution(), ledger.leases.acquire("recipe/digits", Owner.here()))
        assert ledger.executions.latest() is not None


def test_a_user_who_may_not_write_is_told_so(postgres_server: PostgresServer) -> None:
    url = postgres_server.database()
    Ledger.open(url).close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop role if exists reader")
        connection.execute("create role reader login")
        schema = url.rpartition("%3D")[2]
        connection.execute(f"grant usage on schema {schema} to reader".encode())
        connection.execute(f"grant select on all tables in schema {schema} to reader".encode())
    with Ledger.open(url.replace("orchestrate@", "reader@")) as ledger:
        assert ledger.projections.get("a") is None
        with pytest.raises(LedgerError, match="permission denied") as caught:
            ledger.projections.put("a", "b")
    assert "may write" in caught.value.hint
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop owned by reader")
        connection.execute("drop role reader")
