"""A writer that was stopped in the middle of its transaction: who waits for it is told who it is, and what to do."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.errors import LedgerError
from orchestrator.ledger import Ledger
from orchestrator.ledger.writer import writer_of

STOPS = """
import os, signal, sqlite3, sys
ledger = sqlite3.connect(sys.argv[1], isolation_level=None)
ledger.execute("BEGIN IMMEDIATE")
ledger.execute("INSERT INTO ledger_projections (key, value) VALUES ('a', 'never')")
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Ledger.open(f"sqlite:///{tmp_path}/ledger.db").close()
    return tmp_path / "ledger.db"


@pytest.fixture
def stopped(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", STOPS, str(file), "password=hunter2"])
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "the fault has fired"
        yield process
    finally:
        process.kill()
        process.wait()


def test_who_holds_the_ledger_is_named(file: Path, stopped: subprocess.Popen[bytes]) -> None:
    with Ledger.open(f"sqlite:///{file}", busy_timeout_s=0.1) as ledger:
        assert ledger.projections.get("a") is None, "readers go on"
        with pytest.raises(
            LedgerError, match=rf"process {stopped.pid} \(.*\) is stopped and holds it for writing"
        ) as found:
            ledger.projections.put("a", "b")
        assert found.value.exit_code == 3
        assert f"kill -CONT {stopped.pid}" in found.value.hint
        assert found.value.details["writer"]["stopped"] is True
        assert "hunter2" not in found.value.message
        stopped.send_signal(signal.SIGKILL)
        stopped.wait()
        ledger.projections.put("a", "b")
        assert ledger.projections.get("a") == "b", "what the killed one had begun is undone"


def test_nobody_writes(file: Path, tmp_path: Path) -> None:
    assert writer_of(file) is None
    assert writer_of(tmp_path / "none.db") is None
    with sqlite3.connect(file, isolation_level=None) as one:
        one.execute("BEGIN IMMEDIATE")
        found = writer_of(file)
        assert found is not None
        assert (found.pid, found.stopped) == (os.getpid(), False)
        assert "if it hangs" in found.hint
        one.execute("COMMIT")
        assert writer_of(file) is None
