"""Tests and bounds that hold at every look. All in logarithms, constant memory, no random numbers.

Sources:
* Ville (1939): a non-negative supermartingale that begins at 1 reaches 1/alpha with probability alpha at most. A mixture of such
  processes is one. (Ramdas, Gruenwald, Vovk, Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference".)
* Events and sides: Lindon, Malek 2022 "Anytime-valid inference for multinomial count data"; Lindon, Sanden, Shirikian 2022
  "Rapid regression detection in software deployments through sequential testing".
* Hoeffding 1963, theorem 4: for convex f, E f(hypergeometric) <= E f(binomial) of the same mean. Hoeffding 1956: the same for a sum
  of independent Bernoullis of different rates.
* Bounds of a rate: exp(l S - n log(1 + p (exp(l) - 1))) is a supermartingale also where the rate changes and p is the *average* of
  the rates so far, since log(1 + p (exp(l) - 1)) is concave in p (Howard, Ramdas, McAuliffe, Sekhon 2021, "Time-uniform,
  nonparametric, nonasymptotic confidence sequences": sub-Bernoulli processes; mixture as in Robbins 1970).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

THETAS: Final = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 100.0)
"""Ratios of odds, canary to stable, that the alarm looks for, each with the same prior weight. A canary whose odds are less than
about 1.12 times stable's is never reported, however much traffic there is: no one of these fits it better than 1 does."""

_BELOW: Final = ((0.0, 0.3), *((theta, 0.07) for theta in (0.03, 0.1, 0.2, 0.33, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)))
"""Tilts of the upper bound and their weights; 0 alone is -log(1 - p) a request, the classical "3/n" where nothing happens."""
_ABOVE: Final = tuple(3.0**k / 64 for k in range(10))
"""Exponents of the lower bound, same weights; wide, since they also weigh a stable side that is 100 times the canary."""
_STEPS: Final = 18


def log_mean_exp(logs: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Return log(sum of weight * exp(log)); the weights are equal and sum to 1 when absent."""
    top = max(logs)
    if top == -math.inf:
        return top
    if weights is None:
        return top + math.log(sum(math.exp(x - top) for x in logs) / len(logs))
    return top + math.log(sum(w * math.exp(x - top) for x, w in zip(logs, weights, strict=True)))


class RoutedEvents:
    """Evidence that events come to the canary more often than its share of the requests.

    Of a window only four numbers count: requests and events of both sides. If the generations are alike, each event had the same
    chance to be of any of the window's requests: given the window's `n1`, `n0` and its number of events K, those of the canary are
    hypergeometric(n1 + n0, n1, K), whatever the rate was, whatever it was in other windows, and however the router dealt (permuted
    blocks, weights that change, several routers, answers that come late). The factor of an event is the likelihood ratio of a binomial
    with share q = n1 / (n1 + n0) against odds theta times as high; it is convex in the number of events, so that (Hoeffding) its mean
    under the hypergeometric is at most 1. The product over windows is therefore a supermartingale *at the ends of windows*, and
    windows end by numbers of requests alone. Nothing is claimed within a window, where permuted blocks would break it: after a
    stretch without canary requests the rest of a block has more than its share.
    """

    __slots__ = ("_logs",)

    def __init__(self) -> None:
        self._logs = [0.0] * len(THETAS)

    def add(self, n1: float, x1: float, n0: float, x0: float) -> None:
        """Take a whole window: requests and events of the canary, then of stable; both sides had requests."""
        self.add_share(n1 / (n1 + n0), x1, x0)

    def add_share(self, share: float, x1: float, x0: float) -> None:
        """Take events each of which was the canary's with this chance, independently."""
        for place, theta in enumerate(THETAS):
            self._logs[place] += x1 * math.log(theta) - (x1 + x0) * math.log1p(share * (theta - 1.0))

    def add_known(self, rate: float, n1: float, x1: float) -> None:
        """Take requests of the canary whose rate of events is at most `rate`, in place of a stable side."""
        for place, theta in enumerate(THETAS):
            self._logs[place] += x1 * math.log(theta) - n1 * math.log1p(rate * (theta - 1.0))

    @property
    def log_e(self) -> float:
        """Logarithm of the e-value: the evidence against "not worse"."""
        return log_mean_exp(self._logs)


def log_excess(x: float, n: float, rate: float) -> float:
    """Return the logarithm of the e-value, at any time, against "the average rate of n requests, x of them events, is at most rate"."""
    return log_mean_exp([x * math.log(theta) - n * math.log1p(rate * (theta - 1.0)) for theta in THETAS])


def upper_rate(x: float, n: float, log_inverse_alpha: float) -> float:
    """Return a bound that the average rate so far exceeds, at any time ever, with chance exp(-log_inverse_alpha) at most.

    Args:
        x: Events so far.
        n: Requests so far.
        log_inverse_alpha: log(1 / alpha).
    """
    if n <= 0 or x >= n:
        return 1.0
    low, high = x / n, _far(x, n, log_inverse_alpha)
    if _against_high(x, n, high) < log_inverse_alpha:
        low, high = high, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if _against_high(x, n, middle) >= log_inverse_alpha else (middle, high)
    return high


def _far(x: float, n: float, level: float) -> float:
    """Return a rate that most bounds are below, so that few halvings find them; a guess, which callers check."""
    seen = x / n
    return min(1.0, seen + 2 * math.sqrt(2 * seen * (1 - seen) * (level + 4) / n) + 2 * (level + 4) / n)


def _against_high(x: float, n: float, rate: float) -> float:
    """Return log evidence that the rate is lower than `rate`."""
    logs: list[float] = []
    weights: list[float] = []
    for theta, weight in _BELOW:
        if theta == 0.0 and x > 0:
            continue
        odds = x * math.log(theta) if x > 0 else 0.0
        logs.append(odds - n * math.log1p(max(rate * (theta - 1.0), -1 + 1e-16)))
        weights.append(weight)
    return log_mean_exp(logs, weights)


def lower_rate(x: float, n: float, log_inverse_alpha: float, scale: float = 1.0) -> float:
    """Return a bound that the average rate so far is below, at any time ever, with chance exp(-log_inverse_alpha) at most.

    Args:
        x: Weighted events so far: the sum of the weights of the requests that were events.
        n: Sum of the weights of all requests.
        log_inverse_alpha: log(1 / alpha).
        scale: Largest weight of a request so far. With weights c <= scale, E exp(l c Z) = 1 + p (exp(l c) - 1), and
            log(1 + p (exp(l c) - 1)) / c grows with c (Lyapunov) and is concave in p (Jensen): the sum over all requests is at most
            n / scale * log(1 + p (exp(l scale) - 1)) at the weighted average p. Many light requests bound better than few heavy ones.
    """
    if n <= 0 or x <= 0:
        return 0.0
    low, high = 0.0, min(1.0, x / n)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _against_low(x, n, scale, middle) >= log_inverse_alpha else (low, middle)
    return low


def _against_low(x: float, n: float, scale: float, rate: float) -> float:
    """Return log evidence that the rate is higher than `rate`."""
    return log_mean_exp([tilt * x - n / scale * _log_moment(rate, tilt * scale) for tilt in _ABOVE])


def _log_moment(rate: float, tilt: float) -> float:
    """Return log(1 + rate * (exp(tilt) - 1)), also where exp(tilt) is beyond a float."""
    if rate <= 0.0:
        return 0.0
    if tilt < 500:
        return math.log1p(rate * math.expm1(tilt))
    return tilt + math.log(rate)


def chernoff(x: float, n: float, log_inverse_alpha: float) -> tuple[float, float]:
    """Return a lower and an upper bound of an average rate, each of which fails *at one look* with chance exp(-log_inverse_alpha).

    Chernoff: P(x/n <= p - d) <= exp(-n KL(p - d, p)); with different rates as well (Hoeffding 1956).
    """
    if n <= 0:
        return 0.0, 1.0
    seen = min(1.0, x / n)
    return _reach(seen, 0.0, log_inverse_alpha / n), _reach(seen, 1.0, log_inverse_alpha / n)


def _reach(seen: float, end: float, divergence: float) -> float:
    near, far = seen, end
    for _ in range(2 * _STEPS):
        middle = (near + far) / 2
        near, far = (near, middle) if kl(seen, middle) >= divergence else (middle, far)
    return far


def kl(p: float, q: float) -> float:
    """Return the divergence of two Bernoulli rates in nats."""
    if q <= 0.0 or q >= 1.0:
        return 0.0 if p == q else math.inf
    left = p * math.log(p / q) if p > 0 else 0.0
    return left + ((1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0)
