"""One real MLflow server per test session: loopback, a free port, its own folder. About 6 s to start, so it is shared."""

from __future__ import annotations

import atexit
import functools
import tempfile
from pathlib import Path

import pytest

from orchestrator.tracking.ui import Ui, serve_ui


@functools.cache
def session_server() -> Ui:
    """Start the server on first use; it ends with this process, however that ends."""
    folder = tempfile.TemporaryDirectory(prefix="orchestrate-mlflow-")
    ui = serve_ui(f"sqlite:///{folder.name}/mlflow.db", Path(folder.name) / "artifacts")
    atexit.register(folder.cleanup)
    atexit.register(ui.close)
    return ui


@pytest.fixture
def mlflow_url() -> str:
    """The address of the session's MLflow; tests use recipes of their own names in it."""
    return session_server().url
