"""The pages' server: lean, and gone when its starter is gone, however that went."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from orchestrator.core.errors import TrackingError
from orchestrator.core.processes import ProcessIdentity
from orchestrator.tracking.ui import serve_ui

STARTER = """
import sys, time
from orchestrator.tracking.ui import serve_ui
ui = serve_ui(sys.argv[1])
print(ui.url, ui.process.pid, flush=True)
time.sleep(600)
"""


def _group(pgid: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == pgid and ProcessIdentity.of(int(entry.name)) is not None:
                found.append(int(entry.name))
    return found


def test_no_process_stays_when_the_starter_is_killed(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", STARTER, f"sqlite:///{tmp_path}/mlflow.db"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        url, pid = starter.stdout.readline().split()
        assert httpx.get(f"{url}/health", trust_env=False).text == "OK"
        assert 1 < len(_group(int(pid))) <= 3
        starter.kill()
    deadline = time.monotonic() + 10
    while _group(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _group(int(pid)) == []


def test_a_server_needs_no_server() -> None:
    with serve_ui("http://mlflow.example:5000/") as ui:
        assert (ui.url, ui.process) == ("http://mlflow.example:5000", None)


def test_a_database_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, but a text that is long enough to be looked at" * 20)
    with pytest.raises(TrackingError) as caught:
        serve_ui(f"sqlite:///{tmp_path}/mlflow.db", timeout_s=20)
    assert "mlflow-ui.log" in caught.value.hint
