"""How fast a lane is served, measured, and what that means for a client that is told to come again."""

from __future__ import annotations

import math
from typing import Final

_WINDOW_S: Final = 1.0
_LEAST_S: Final = 0.05
_MOST_S: Final = 60


class Pace:
    """Requests answered per second while some waited."""

    __slots__ = ("_answered", "_rate", "_since", "_waited")

    def __init__(self) -> None:
        self._rate = self._since = 0.0
        self._answered = 0
        self._waited = False

    def sample(self, now: float, answered: int, waiting: int) -> None:
        """Look at the lane; call this often: it looks once a second.

        Args:
            now: `time.monotonic()`.
            answered: Requests that were answered with success so far.
            waiting: Requests in the queue.
        """
        took_s = now - self._since
        if took_s < _WINDOW_S:
            return
        if self._waited and waiting:
            rate = (answered - self._answered) / took_s
            self._rate = rate if not self._rate else (self._rate + rate) / 2
        self._since, self._answered, self._waited = now, answered, waiting > 0

    def retry_after_s(self, now: float, answered: int, waiting: int) -> int:
        """Return when `waiting` requests will have been served, 1 to 60 seconds."""
        took_s, rate = now - self._since, self._rate
        if not rate and self._since and took_s > _LEAST_S:
            rate = (answered - self._answered) / took_s
        if not rate:
            return 1
        return max(1, min(_MOST_S, math.ceil(waiting / rate)))
