"""Events of one kind on both sides of one source of requests: the alarm, and the bound of (canary - stable)."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from orchestrator.rollout.evidence.sequential import RoutedEvents, lower_rate, upper_rate

WINDOW: Final = 50
"""Requests of both sides together, at which a window ends if both had some."""
CANARY_SHARE: Final = 0.75
CONTROL_SHARE: Final = 0.2
EARLIER_SHARE: Final = 0.05
"""Parts of alpha in the bound: the canary's rate, stable's in the same windows, stable's from before it lost its traffic."""
_LOG_CANARY, _LOG_CONTROL, _LOG_EARLIER = (math.log(share) for share in (CANARY_SHARE, CONTROL_SHARE, EARLIER_SHARE))
_MOST_WINDOWS: Final = 256
_ENDLESS: Final = 1e6

Key = tuple[int, str]
"""The canary's weight, and what else must be alike (rows of a batch)."""


class Allowed(NamedTuple):
    """What the canary may do where stable has no requests: exceed neither an upper bound of what stable did earlier, with chance
    exp(-log_inverse_alpha) of being wrong, nor, where nothing is known of stable, this rate.
    """

    rate: float
    log_inverse_alpha: float


class Stream:
    """Windows of one source (routed requests, or replayed golden samples) and what they have shown.

    The control is matched: a window's stable rate counts as often as the window has canary requests. So weights, batch sizes and
    rates may change from window to window without a difference of the mix passing for a difference of the generations.

    At weight 100 stable has no requests. Then the canary is compared with what stable was before, which is not concurrent, and the
    judgement says so: the alarm takes an upper bound of stable's earlier rate for the rate that is allowed.

    Attributes:
        n1: Canary's requests in closed windows; x1: events among them. The alarm leaves those out that stable shares, see `add`.
        control: Stable's events in the same windows, matched to n1.
        n0: Stable's requests in closed windows; x0: events.
        alone_n1: Canary's requests without a stable side; alone_x1: events among them.
        shared: Of the canary's events that were compared, those that stable shares.
    """

    __slots__ = ("_bound", "_ceiling", "_earlier", "_open", "_process", "_scale", "alone_n1", "alone_x1", "control", "n0", "n1",
                 "shared", "x0", "x1")  # fmt: skip

    def __init__(self) -> None:
        self._process = RoutedEvents()
        self._open: dict[Key, list[float]] = {}
        self._scale = 0.0
        self._earlier = (0.0, 0.0)
        self._ceiling: float | None = None
        self._bound: tuple[float, float, float] | None = None
        self.n1 = self.x1 = self.control = self.n0 = self.x0 = self.alone_n1 = self.alone_x1 = self.shared = 0.0

    def add(
        self,
        key: Key,
        canary: tuple[float, float],
        stable: tuple[float, float],
        allowed: Allowed,
        shared: float = 0.0,
    ) -> None:
        """Take requests and events of both sides.

        Args:
            key: In which window.
            canary: Requests, events.
            stable: Requests, events.
            allowed: What the canary may do where stable has no requests.
            shared: Of the canary's events, those of requests that stable has failed as well. The bound counts them; the alarm does
                not: with fewer events of the canary each factor is smaller (theta is above 1 and a share is at most 1), so that
                its chance of being false stays, whoever chose which requests fail.
        """
        n1, n0 = max(0.0, canary[0]), max(0.0, stable[0])
        x1, x0 = min(max(0.0, canary[1]), n1), min(max(0.0, stable[1]), n0)
        self._earlier = (self._earlier[0] + n0, self._earlier[1] + x0)
        if key[0] >= 100:
            self._alone(n1, x1, shared, allowed)
            return
        if key[0] <= 0:
            return
        window = self._open.get(key)
        if window is None:
            if len(self._open) >= _MOST_WINDOWS:
                del self._open[next(iter(self._open))]
            window = self._open[key] = [0.0, 0.0, 0.0, 0.0, 0.0]
        for place, count in enumerate((n1, x1, n0, x0, shared)):
            window[place] += count
        if window[0] > 0 and window[2] > 0 and window[0] + window[2] >= WINDOW:
            del self._open[key]
            self._close(*window)

    def _close(self, n1: float, x1: float, n0: float, x0: float, shared: float) -> None:
        self._process.add(n1, max(0.0, x1 - shared), n0, x0)
        self.shared += shared
        self._scale = max(self._scale, n1 / n0)
        self.control += n1 * (x0 / n0)
        self.n1, self.x1, self.n0, self.x0 = self.n1 + n1, self.x1 + x1, self.n0 + n0, self.x0 + x0

    def _alone(self, n1: float, x1: float, shared: float, allowed: Allowed) -> None:
        if n1 <= 0:
            return
        if self._ceiling is None:
            n0, x0 = self._earlier
            self._ceiling = allowed.rate if n0 < WINDOW else upper_rate(x0, n0, allowed.log_inverse_alpha)
        self._process.add_known(self._ceiling, n1, max(0.0, x1 - shared))
        self.shared += shared
        self.alone_n1, self.alone_x1 = self.alone_n1 + n1, self.alone_x1 + x1

    @property
    def log_e(self) -> float:
        """Logarithm of the evidence that the canary is worse."""
        return self._process.log_e

    @property
    def canary(self) -> tuple[float, float]:
        """The canary's requests and events that were compared."""
        return self.n1 + self.alone_n1, self.x1 + self.alone_x1

    @property
    def stable(self) -> tuple[float, float]:
        """Stable's requests and events that they were compared with; the earlier ones where no others are."""
        return (self.n0, self.x0) if self.n0 else self._earlier if self.alone_n1 else (0.0, 0.0)

    @property
    def open_canary(self) -> float:
        """The canary's requests in windows that are still open."""
        return sum(window[0] for window in self._open.values())

    def upper(self, log_inverse_alpha: float, factor: float = 1.0) -> float:
        """Return the bound of the canary's average rate less the matched average of stable's; 1 without data.

        Args:
            log_inverse_alpha: log(1 / alpha) of the whole bound.
            factor: As if there were so many times the data, at the same rates.
        """
        n1, x1 = self.canary
        if n1 <= 0:
            return 1.0
        asked = (n1 * factor, log_inverse_alpha)
        if self._bound is not None and self._bound[:2] == asked:
            return self._bound[2]
        found = self._upper(n1 * factor, x1 * factor, log_inverse_alpha, factor)
        if factor == 1.0:
            self._bound = (*asked, found)
        return found

    def _upper(self, n1: float, x1: float, log_inverse_alpha: float, factor: float) -> float:
        high = upper_rate(x1, n1, log_inverse_alpha - _LOG_CANARY)
        low = 0.0
        if self.n1 > 0:
            matched = lower_rate(self.control * factor, self.n1 * factor, log_inverse_alpha - _LOG_CONTROL, self._scale)
            low += self.n1 * factor / n1 * matched
        if self.alone_n1 > 0:
            n0, x0 = self._earlier
            low += self.alone_n1 * factor / n1 * lower_rate(x0, n0, log_inverse_alpha - _LOG_EARLIER)
        return high - low

    def needs(self, margin: float, log_inverse_alpha: float) -> int | None:
        """Return the canary's further requests until the bound is below a margin, if its and stable's rates stay."""
        n1, x1 = self.canary
        if n1 <= 0:
            return None
        if self.upper(log_inverse_alpha) < margin:
            return 0
        if (x1 - self.control - self.alone_n1 / max(self._earlier[0], 1.0) * self._earlier[1]) / n1 >= margin:
            return None
        low, high = 1.0, 2.0
        while self._upper(n1 * high, x1 * high, log_inverse_alpha, high) >= margin:
            low, high = high, high * 2
            if n1 * high > _ENDLESS:
                return None
        for _ in range(4):
            middle = (low + high) / 2
            cleared = self._upper(n1 * middle, x1 * middle, log_inverse_alpha, middle) < margin
            low, high = (low, middle) if cleared else (middle, high)
        return int(n1 * (high - 1)) + 1
