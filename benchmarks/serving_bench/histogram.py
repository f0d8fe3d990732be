"""Latencies in buckets of constant relative width, as HdrHistogram has them: 128 a doubling, so 0.8 % wide at most."""

from __future__ import annotations

from array import array
from typing import Final

import numpy as np

_SUB: Final = 128
_BUCKETS: Final = 48 * _SUB
_CHUNK: Final = 1 << 16


class Histogram:
    """Counts nanoseconds; memory does not grow with the run. `add` is the hot path: one append."""

    def __init__(self) -> None:
        self.fresh: array[int] = array("q")
        self.add = self.fresh.append
        self._counts = np.zeros(_BUCKETS, dtype=np.int64)
        self._largest_ns = 0

    def fold(self, *, least: int = 0) -> None:
        """Move what `add` collected into the buckets, once it is at least `least` values."""
        if len(self.fresh) < max(1, least):
            return
        values = np.maximum(np.array(self.fresh, dtype=np.float64), 1.0)
        del self.fresh[:]
        mantissa, exponent = np.frexp(values)
        index = exponent * _SUB + ((mantissa - 0.5) * 2 * _SUB).astype(np.int64)
        self._counts += np.bincount(np.minimum(index, _BUCKETS - 1), minlength=_BUCKETS)
        self._largest_ns = max(self._largest_ns, int(values.max()))

    def clear(self) -> None:
        """Forget everything."""
        del self.fresh[:]
        self._counts[:] = 0
        self._largest_ns = 0

    @property
    def count(self) -> int:
        """How many values there are."""
        self.fold()
        return int(self._counts.sum())

    def quantile_ms(self, share: float) -> float:
        """Return the upper edge of the bucket that holds this share of the values, in milliseconds; 0 without values."""
        total = self.count
        if not total:
            return 0.0
        index = int(np.searchsorted(np.cumsum(self._counts), max(1, share * total)))
        exponent, sub = divmod(index, _SUB)
        return float(min(np.ldexp(0.5 + (sub + 1) / (2 * _SUB), exponent), self._largest_ns)) / 1e6

    def summary(self) -> dict[str, float]:
        """Return the usual percentiles in milliseconds."""
        shares = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999}
        return {name: round(self.quantile_ms(share), 4) for name, share in shares.items()} | {
            "max_ms": round(self._largest_ns / 1e6, 4)
        }


CHUNK = _CHUNK
