"""Being asked to stop: Ctrl-C, SIGTERM, a terminal that closes, or `orchestrate cancel` from another terminal."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from orchestrator.core.errors import Interrupted
from orchestrator.ledger import Ledger

CANCEL_REQUESTED: Final = "cancel_requested"
_POLL_S: Final = 0.5


class Cancelled(Interrupted):
    """Somebody asked to cancel the execution."""


class StopRequests:
    """Looks for a reason to stop; `check` is called between any two things the engine does."""

    def __init__(self, ledger: Ledger, execution: str) -> None:
        self._ledger = ledger
        self._execution = execution
        self._signal = 0
        self._polled_at = 0.0
        self._seen = 0

    @contextmanager
    def listening(self) -> Generator[None]:
        """Turn SIGINT, SIGTERM and SIGHUP into a request; a second SIGINT ends the process the usual way.

        What the caller ignores (`nohup`) stays ignored.
        """
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
        for number in before:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Return, or raise the reason to stop.

        Raises:
            Interrupted: A signal came.
            Cancelled: The ledger holds a request to cancel.
        """
        if self._signal:
            name = signal.Signals(self._signal).name
            raise Interrupted(f"stopped by {name}", hint="the same command goes on where this one stopped")
        if time.monotonic() - self._polled_at < _POLL_S:
            return
        self._polled_at = time.monotonic()
        for event in self._ledger.executions.events(self._execution, after_seq=self._seen):
            self._seen = max(self._seen, event.seq)
            if event.type == CANCEL_REQUESTED:
                raise Cancelled(f"cancelled by {event.payload.get('actor', 'somebody')}")

    def skip_past(self) -> None:
        """Forget requests made before now; they were meant for an earlier try."""
        for event in self._ledger.executions.events(self._execution, after_seq=0, limit=1_000_000):
            self._seen = max(self._seen, event.seq)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:
            signal.default_int_handler(number, _frame)
        self._signal = number
