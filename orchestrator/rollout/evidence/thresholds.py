"""When an answer counts as slow: above a quantile of what stable took before, for batches of as many rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from orchestrator.rollout.evidence.rows import Histogram, whole

LEAST: Final = 100
"""Batches of stable of one size before there is a threshold for it; it is taken anew each time they have doubled."""
_MOST_SIZES: Final = 256


@dataclass(frozen=True, slots=True)
class Limit:
    """Batches in a higher bucket are slow."""

    bucket: int

    def exceeded(self, times: Histogram) -> tuple[float, float]:
        """Return how many batches there are, and how many of them are slow."""
        slow = sum(count for bucket, count in times.items() if int(bucket) > self.bucket)
        return float(sum(times.values())), float(slow)


class Thresholds:
    """Thresholds of one quantile, by rows of a batch.

    What is judged never takes part in its own threshold: `of` first, `learn` then. So the threshold is predictable, and if the
    generations are alike a slow batch is as likely to be of either, wherever the threshold lies.
    """

    __slots__ = ("_counts", "_limits", "_next", "_quantile")

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._counts: dict[str, dict[int, int]] = {}
        self._limits: dict[str, Limit] = {}
        self._next: dict[str, int] = {}

    def of(self, rows: str) -> Limit | None:
        """Return the threshold for batches of so many rows; None while too few are known."""
        return self._limits.get(rows)

    def learn(self, compute: Mapping[str, Histogram]) -> None:
        """Take stable's batches of a look."""
        for rows, times in compute.items():
            if rows not in self._counts and len(self._counts) >= _MOST_SIZES:
                continue
            counts = self._counts.setdefault(rows, {})
            for bucket, count in times.items():
                place = whole(int(bucket))
                counts[place] = counts.get(place, 0) + count
            total = sum(counts.values())
            if total >= self._next.get(rows, LEAST):
                self._limits[rows] = Limit(_quantile(counts, total, self._quantile))
                self._next[rows] = 2 * total


def _quantile(counts: Mapping[int, int], total: int, quantile: float) -> int:
    below = 0
    for bucket in sorted(counts):
        below += counts[bucket]
        if below >= quantile * total:
            return bucket
    return max(counts)
