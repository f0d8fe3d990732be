"""KServe's REST and gRPC clients, unmodified, in an interpreter of their own: over every datatype, both ways to send it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.serving_site import ServingSite

ROOT = Path(__file__).resolve().parents[2]
NAMED = os.environ.get("ORCHESTRATE_TEST_KSERVE_PYTHON")
INSTALLED = ROOT / ".venv-kserve" / "installed"
PYTHON = Path(NAMED) if NAMED else ROOT / ".venv-kserve" / "bin" / "python"


@pytest.mark.skipif(
    not NAMED and not INSTALLED.is_file(), reason="no kserve 0.21.0: tests/install-tools.sh installs it"
)
def test_kserves_own_clients(echo_site: ServingSite) -> None:
    script = ROOT / "tests" / "support" / "kserve_child.py"
    done = subprocess.run(
        [PYTHON, script, echo_site.url, echo_site.grpc], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    for client in ("rest", "grpc"):
        assert all(told[f"{client} {what}"] is True for what in ("live", "ready", "model ready"))
        assert told[f"{client} id"] == "7"
    assert "404" in told["rest unknown"]
    assert "is not found" in told["rest unknown"]
    assert "400" in told["rest wrong"]
    assert "NOT_FOUND" in told["grpc unknown"]
    sent = {key: value for key, value in told.items() if key.split()[-1] in ("binary", "json", "raw", "typed")}
    assert set(sent.values()) == {"same"}, {key: value for key, value in sent.items() if value != "same"}
    assert len(sent) == 2 * (12 * 2 + 1)
