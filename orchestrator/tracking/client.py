"""One MLflow client per address, driven so that it can never block us longer than a budget and never repeats a POST.

MLflow's own client retries every verb, POST included, and waits 247 s for a server that is down. Here: no retries, one
worker thread that carries out one request at a time (so a request that we gave up on is over before the next begins),
a deadline over all requests of a call, and a breaker that spares the next calls the waiting.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from orchestrator.core import faults
from orchestrator.core.errors import TrackingError, Unreachable
from orchestrator.core.redact import redact_text, redact_url

T = TypeVar("T")

_REQUEST_TIMEOUT_S: Final = 8
_UPLOAD_TIMEOUT_S: Final = 600
_BREAKER_MAX_S: Final = 60.0
_TIMEOUT_VARIABLE: Final = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_FORCED: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    _TIMEOUT_VARIABLE: str(_REQUEST_TIMEOUT_S),
}
_DEFAULTS: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_GONE: Final = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_EXISTS: Final = {"RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"}


class Gone(TrackingError):
    """MLflow no longer has (or shows) an entity that we remember."""


class Exists(TrackingError):
    """MLflow has it already."""


def prepare_environment() -> None:
    """Set MLflow's switches for this process; before its import, because some are read only then."""
    os.environ.update(_FORCED)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


@dataclass(slots=True)
class _Outcome:
    """What became of one request in the worker thread."""

    key: str
    done: threading.Event = field(default_factory=threading.Event)
    value: object = None
    error: BaseException | None = None

    def succeed(self, value: object) -> None:
        self.value = value
        self.done.set()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.done.set()


class Session:
    """All talk with one MLflow; use it under `lock`, with `begin` first.

    Args:
        uri: `sqlite:////absolute/path` or `http(s)://host:port`.
        artifact_root: Where model files go for a database without a server.

    Attributes:
        refusals: What this MLflow refused for good -> its reason; not asked again by this process.
    """

    def __init__(self, uri: str, artifact_root: Path | None) -> None:
        self.uri = uri
        self.lock = threading.Lock()
        self.artifact_root = artifact_root
        self.refusals: dict[str, str] = {}
        self._client: Any = None
        self._pool: ThreadPool | None = None
        self._running: _Outcome | None = None
        self._uploads: dict[str, _Outcome] = {}
        self._deadline = 0.0
        self._failures = 0
        self._open_until = 0.0

    @property
    def is_server(self) -> bool:
        """True for http(s): MLflow's own code stores the artifacts."""
        return self.uri.startswith(("http://", "https://"))

    def begin(self, budget_s: float) -> None:
        """Start the clock over all requests until the next `begin`."""
        self._deadline = time.monotonic() + budget_s

    def breaker_s(self) -> float:
        """Seconds until the next attempt makes sense; 0 when closed."""
        return max(0.0, self._open_until - time.monotonic())

    def succeeded(self) -> None:
        """Close the breaker."""
        self._failures, self._open_until = 0, 0.0

    def failed(self) -> None:
        """Open the breaker: 1, 2, 4 ... 60 s."""
        self._open_until = time.monotonic() + min(_BREAKER_MAX_S, 2.0**self._failures)
        self._failures += 1

    def run(self, what: str, request: Callable[[Any], T]) -> T:
        """Carry out one request and wait for it within the deadline.

        Args:
            what: Its name, for messages.
            request: Gets the `MlflowClient` (`Any`: MLflow's annotations are partial); runs in the worker thread.

        Raises:
            Unreachable: No answer in time, no connection, a 5xx, or an answer that is not MLflow's.
            Gone: The entity does not exist.
            Exists: The entity exists already.
            TrackingError: Refused for good.
        """
        return self._wait(what, self._submit(what, lambda: request(self._open())))

    def run_upload(self, what: str, request: Callable[[Any], T]) -> T:
        """Like `run`, for large bodies: a server may take minutes to store them before it answers.

        Args:
            what: Names the content too: an upload of this name that an earlier call gave up waiting for, and that is still
                under way, is waited for and not repeated.
            request: As for `run`.
        """
        outcome = self._uploads.get(what)
        if outcome is None or outcome.error is not None:
            outcome = self._submit(what, lambda: _with_timeout(_UPLOAD_TIMEOUT_S, lambda: request(self._open())))
            self._uploads[what] = outcome
        try:
            return self._wait(what, outcome)
        finally:
            if outcome.done.is_set():
                self._uploads.pop(what, None)

    def _wait(self, what: str, outcome: _Outcome) -> Any:
        if not outcome.done.wait(self._remaining_s()):
            raise Unreachable(f"{what}: no answer within the time budget", place=redact_url(self.uri))
        if self._running is outcome:
            self._running = None
        if outcome.error is not None:
            raise _translate(outcome.error, what, self.uri)
        faults.point("tracking.reply")
        return outcome.value

    def _remaining_s(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _submit(self, what: str, work: Callable[[], object]) -> _Outcome:
        running = self._running
        if running is not None and not running.done.wait(self._remaining_s()):
            raise Unreachable(f"{what}: {running.key} has not ended yet", place=redact_url(self.uri))
        if self._remaining_s() <= 0:
            raise Unreachable(f"{what}: the time budget is spent", place=redact_url(self.uri))
        if self._pool is None:
            self._pool = ThreadPool(1)
            atexit.register(self._pool.close)  # closes at exit without waiting for a request that is stuck
        outcome = self._running = _Outcome(what)
        self._pool.apply_async(work, callback=outcome.succeed, error_callback=outcome.fail)
        return outcome

    def _open(self) -> Any:
        """Runs in the worker thread: importing MLflow and migrating a fresh database take seconds."""
        if self._client is None:
            prepare_environment()
            from mlflow import MlflowClient

            if self.uri.startswith("sqlite:///"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        if not self.is_server:
            _make_default(self.uri)
        return self._client


def _make_default(uri: str) -> None:
    """MLflow's database registry looks models up at the process-wide address, whatever client it was called through."""
    import mlflow

    if mlflow.get_tracking_uri() != uri:
        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(uri)
        if before is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)  # set for child processes, which are none of its business
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _with_timeout(timeout_s: int, work: Callable[[], T]) -> T:
    """MLflow reads its time-out from the environment at each request; only our worker thread makes requests."""
    before = os.environ[_TIMEOUT_VARIABLE]
    os.environ[_TIMEOUT_VARIABLE] = str(timeout_s)
    try:
        return work()
    finally:
        os.environ[_TIMEOUT_VARIABLE] = before


def _translate(error: BaseException, what: str, uri: str) -> BaseException:
    """Return our error for MLflow's; anything that is neither MLflow's, the network's nor the database's is a bug of ours."""
    place = redact_url(uri)
    text = redact_text(" ".join(str(error).split()))[:600]
    code = str(getattr(error, "error_code", ""))
    if code in _GONE or "must be in the 'active'" in text or "must be in 'active'" in text:
        return Gone(f"{what}: {text}", place=place)
    if code in _EXISTS:
        return Exists(f"{what}: {text}", place=place)
    status = _status(error)
    if status is None:
        return error
    if status >= 500 or status in {401, 403, 404, 407, 408, 429}:
        return Unreachable(f"{what}: {text}", place=place, hint="is this MLflow's address, and is it up?")
    return TrackingError(f"{what}: {text}", place=place)


def _status(error: BaseException) -> int | None:
    """HTTP status that the error amounts to; None: not an error of talking to MLflow."""
    to_status = cast("Callable[[], int] | None", getattr(error, "get_http_status_code", None))
    if to_status is not None:
        return to_status()
    response: Any = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    modules = {family.__module__.partition(".")[0] for family in type(error).__mro__}
    transport = isinstance(error, OSError | json.JSONDecodeError) or "sqlalchemy" in modules
    return 503 if transport else None


_sessions: dict[str, Session] = {}
_sessions_lock: Final = threading.Lock()


def session_for(uri: str, artifact_root: Path | None) -> Session:
    """Return this process's session for an address; opening one costs seconds, so it is kept."""
    with _sessions_lock:
        if uri not in _sessions:
            _sessions[uri] = Session(uri, artifact_root)
        return _sessions[uri]
