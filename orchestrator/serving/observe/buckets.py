"""Logarithmic buckets of times: what routers count, and those who judge rollouts read. Each is 5 % wide."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

GROWTH: Final = 1.05
LAST: Final = 520
"""The last bucket has no upper edge; it begins after more than a day."""

_EDGES: Final = [GROWTH**place for place in range(LAST + 1)]


def bucket_of(time_us: float) -> int:
    """Return the bucket of a time: the largest k with `GROWTH**k <= time_us`, at least 0 and at most `LAST`."""
    return max(0, bisect_right(_EDGES, time_us) - 1)


def lower_us(bucket: int) -> float:
    """Return the smallest time of a bucket; bucket 0 takes all below its upper edge, so that it begins at 0."""
    return _EDGES[bucket] if bucket else 0.0


def upper_us(bucket: int) -> float:
    """Return the smallest time that is above a bucket; infinity for the last."""
    return _EDGES[bucket + 1] if bucket < LAST else float("inf")
