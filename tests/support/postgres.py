"""A real PostgreSQL server on loopback for the length of a test session, and fresh tables per test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
import pytest

from orchestrator.core.processes import die_with_parent

_numbers = count(1)


@dataclass
class PostgresServer:
    """`database()` gives the URL of a new, empty ledger."""

    binaries: Path
    folder: Path
    user: str | None  # initdb refuses root
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def create(self) -> None:
        data = self.folder / "data"
        arguments = ["-D", str(data), "-U", "orchestrate", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"]
        subprocess.run(
            [str(self.binaries / "initdb"), *arguments],
            check=True,
            user=self.user,
            cwd=self.folder,
            capture_output=True,
        )

    def start(self) -> None:
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        parent = os.getpid()
        settings = ["fsync=off", "full_page_writes=off", f"port={self.port}", "listen_addresses=127.0.0.1"]
        settings += [f"unix_socket_directories={self.folder}", "max_connections=60", "shared_buffers=16MB"]
        command = [str(self.binaries / "postgres"), "-D", str(self.folder / "data")]
        for setting in settings:
            command += ["-c", setting]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                user=self.user,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509  # the session starts it before any thread
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.dsn("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                assert self.process is not None
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "server.log").read_text()) from None
                time.sleep(0.05)

    def stop(self, signal_number: int = signal.SIGINT) -> None:
        assert self.process is not None
        self.process.send_signal(signal_number)  # SIGINT = fast shutdown, SIGQUIT = crash
        self.process.wait(20)

    def dsn(self, database: str) -> str:
        return f"postgresql://orchestrate@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """A schema of its own is as empty as a database, and a hundred times cheaper."""
        name = f"ledger{next(_numbers)}"
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"create schema {name}".encode())
        return f"{self.dsn('postgres')}?options=-csearch_path%3D{name}"


def _binaries() -> Path | None:
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    return versions[-1].parent if versions else None


def _unprivileged() -> str | None:
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


@contextmanager
def temporary_server() -> Generator[PostgresServer | None, None, None]:
    """Run a server for the length of a `with` block; None where its programs are not installed."""
    binaries = _binaries()
    if binaries is None:
        yield None
        return
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="opg-", dir="/tmp"))  # short: it holds a Unix socket
    try:
        if user is not None:
            shutil.chown(folder, user)
        server = PostgresServer(binaries, folder, user)
        server.create()
        server.start()
        yield server
        server.stop(signal.SIGQUIT)  # nothing is worth a checkpoint
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with temporary_server() as server:
        if server is None:
            pytest.skip("needs the system package postgresql (initdb and postgres)")
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty ledger's URL, once per backend."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.database()
