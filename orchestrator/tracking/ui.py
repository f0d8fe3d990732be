"""MLflow's web pages on a laptop: one lean server over the local database, or the address of a server that runs already."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import httpx

from orchestrator.core.errors import TrackingError
from orchestrator.tracking.pages import page_urls

__all__ = ["Ui", "page_urls", "serve_ui"]

_START_S: Final = 60.0
_TAIL_CHARS: Final = 2000
_LEAN: Final = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


@dataclass(slots=True)
class Ui:
    """A web address, and the server behind it when it is ours."""

    url: str
    process: subprocess.Popen[bytes] | None = None

    def wait(self) -> None:
        """Block until our server ends."""
        if self.process is not None:
            self.process.wait()

    def close(self) -> None:
        """End our server and its workers."""
        if self.process is None or self.process.poll() is not None:
            return
        for number, wait_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 2.0)):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(wait_s)
                return
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                return

    def __enter__(self) -> Ui:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def serve_ui(
    uri: str,
    artifact_root: Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    log: Path | None = None,
    timeout_s: float = _START_S,
) -> Ui:
    """Return the pages of an MLflow address; a database gets a server of its own, on loopback.

    Args:
        uri: `sqlite:////absolute/path` or `http(s)://…` (then nothing is started).
        artifact_root: Where the server puts artifacts that clients send through it.
        host: Address to listen on.
        port: 0 = any free one.
        log: Where the server's output goes; default: a file beside the database.
        timeout_s: How long to wait until it answers.

    Raises:
        TrackingError: The server ended or did not answer; the end of its output is in the hint.
    """
    if uri.startswith(("http://", "https://")):
        return Ui(uri.rstrip("/"))
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    log = log or database.with_name("mlflow-ui.log")
    port = port or _free_port(host)
    url = f"http://{host}:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(uri, artifact_root or database.with_name("mlartifacts"), host, port),
            stdin=subprocess.PIPE,  # held open: see ui_server
            stdout=output,
            stderr=output,
            cwd=database.parent,
            env={**os.environ, **_LEAN},
            start_new_session=True,
        )
    ui = Ui(url, process)
    try:
        _wait_until_up(ui, log, time.monotonic() + timeout_s)
    except BaseException:
        ui.close()
        raise
    return ui


def _command(uri: str, artifact_root: Path, host: str, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "orchestrator.tracking.ui_server"),
        *("--backend-store-uri", uri),
        *("--artifacts-destination", str(artifact_root)),
        *("--host", host, "--port", str(port), "--workers", "1"),
    ]


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _wait_until_up(ui: Ui, log: Path, deadline: float) -> None:
    assert ui.process is not None
    with httpx.Client(timeout=2.0, trust_env=False) as client:
        while time.monotonic() < deadline and ui.process.poll() is None:
            try:
                if client.get(f"{ui.url}/health").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
    ended = ui.process.poll()
    what = "did not answer in time" if ended is None else f"ended with status {ended}"
    tail = log.read_text(encoding="utf-8", errors="replace")[-_TAIL_CHARS:]
    raise TrackingError(f"the MLflow server at {ui.url} {what}", hint=f"see {log}; its last words:\n{tail}")
