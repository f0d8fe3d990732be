"""gRPC calls that come fast wait a moment for each other, so that they share a batch.

grpc.aio hands over one call at a time, some 0.2 ms apart even where many wait, while one turn of the event loop brings all HTTP
requests that have arrived. A batch of one costs router, replica and scheduler as much as a batch of eight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_NEAR_S: Final = 0.0003
"""Calls come fast where the mean time between two of them is below this; after such a pause nobody waits any longer."""
_MOST_S: Final = 0.0015
_MOST: Final = 16
"""How long a call waits for others, and for how many."""
_FAR_S: Final = 0.002
"""More between two calls counts as this: a pause of a second is forgotten after a few calls."""
_MEMORY: Final = 0.1
"""Weight of the newest in the mean."""


class Company:
    """Says when a call goes on. Everything runs in the event loop.

    Args:
        loop: The event loop.
        clock: Seconds; that of `asked`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._last_s = self._until_s = 0.0
        self._mean_s = _FAR_S
        self._waiting: list[asyncio.Future[None]] = []

    def asked(self, now_s: float) -> asyncio.Future[None] | None:
        """Take in a call that has arrived; returns what it waits for, 1.5 ms at most, or None where it goes on at once."""
        self._mean_s += (min(now_s - self._last_s, _FAR_S) - self._mean_s) * _MEMORY
        self._last_s = now_s
        if not self._waiting:
            if self._mean_s >= _NEAR_S:
                return None
            self._until_s = now_s + _MOST_S
            self._loop.call_soon(self._look)
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(turn)
        return turn

    def _look(self) -> None:
        """Once in each turn of the loop, whose timers are too coarse for this."""
        now_s = self._clock()
        if now_s < min(self._until_s, self._last_s + _NEAR_S) and len(self._waiting) < _MOST:
            self._loop.call_soon(self._look)
            return
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():  # its client may have gone
                turn.set_result(None)
