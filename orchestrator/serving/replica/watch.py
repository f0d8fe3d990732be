"""The watch over batches and loads: the kernel ends this process (SIGALRM's default action) when one takes too long, even where
the device's call never gives the interpreter back.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Generator
from typing import Final

from orchestrator.serving.replica.blame import Blame

_LEAST_S: Final = 0.001
_NOBODY: Final = -1


class Watch:
    """One alarm for all models of the process: it is set for the one that is due first.

    Args:
        blame: Where to write for whom it is set, so that the agent knows it when it has rung.
    """

    def __init__(self, blame: Blame | None = None) -> None:
        self._blame = blame
        self._due: dict[int, float] = {}
        self._running = _NOBODY

    def on(self, member: int, within_s: float) -> None:
        """A batch of the member has begun, or has gone on."""
        self._due[member] = time.monotonic() + within_s
        if len(self._due) == 1 or member == self._running:
            self._arm(member, within_s)
        else:
            self._set()

    def off(self, member: int) -> None:
        """The member has nothing on the device."""
        if self._due.pop(member, None) is not None:
            self._set()

    @contextlib.contextmanager
    def running(self, member: int) -> Generator[None]:
        """Only this member can get on meanwhile: the batches of the others may take as much longer."""
        begun = time.monotonic()
        self._running = member
        self._set()
        try:
            yield
        finally:
            self._running = _NOBODY
            took_s = time.monotonic() - begun
            if took_s > _LEAST_S:
                self._due = {other: due + took_s * (other != member) for other, due in self._due.items()}
            self._set()

    @contextlib.contextmanager
    def loading(self, member: int, within_s: float) -> Generator[None]:
        """The member is loaded, which may hold the interpreter."""
        with self.running(member):
            self.on(member, within_s)
            try:
                yield
            finally:
                self.off(member)

    def _set(self) -> None:
        first = self._running
        if first == _NOBODY and self._due:
            first = min(self._due, key=self._due.__getitem__)
        if first not in self._due:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return
        self._arm(first, max(_LEAST_S, self._due[first] - time.monotonic()))

    def _arm(self, member: int, within_s: float) -> None:
        if self._blame is not None:
            self._blame.alarm(member)
        signal.setitimer(signal.ITIMER_REAL, within_s)
