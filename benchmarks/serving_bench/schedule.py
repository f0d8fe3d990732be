"""When the requests of an open loop are meant to be sent."""

from __future__ import annotations

import random


class Schedule:
    """Times of a Poisson process."""

    def __init__(self, rate: float, seed: int, start_ns: int) -> None:
        self._random, self._rate = random.Random(seed), rate
        self.next_ns = start_ns
        self.left = 0

    def take(self) -> int:
        """Return the next time and go on to the one after it."""
        found = self.next_ns
        self.next_ns = found + int(self._random.expovariate(self._rate) * 1e9)
        return found
