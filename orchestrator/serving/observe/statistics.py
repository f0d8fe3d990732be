"""What one generation has done since the router's start, in the terms of Triton's statistics extension."""

from __future__ import annotations

import time


class LaneStatistics:
    """Counters of one lane; times are sums.

    Attributes:
        rows: Inferences: a request of three rows counts three.
        batches: Executions by rows that ran together: [executions, compute time in us].
        last_s: Unix time of the last success.
    """

    __slots__ = ("batches", "compute_us", "failed", "failed_s", "last_s", "queue_s", "rows", "succeeded", "succeeded_s")

    def __init__(self) -> None:
        self.succeeded = self.failed = self.rows = self.compute_us = 0
        self.succeeded_s = self.failed_s = self.queue_s = self.last_s = 0.0
        self.batches: dict[int, list[int]] = {}

    def executed(self, rows: int, compute_us: int) -> None:
        """Count one batch."""
        found = self.batches.get(rows)
        if found is None:
            found = self.batches[rows] = [0, 0]
        found[0] += 1
        found[1] += compute_us

    def ended(self, *, ok: bool, rows: int, queue_s: float, compute_us: int, total_s: float) -> None:
        """Count one request."""
        if not ok:
            self.failed += 1
            self.failed_s += total_s
            return
        self.succeeded += 1
        self.succeeded_s += total_s
        self.queue_s += queue_s
        self.compute_us += compute_us
        self.rows += rows
        self.last_s = time.time()

    def to_json(self, name: str, version: str) -> dict[str, object]:
        """Return Triton's `ModelStatistics`; copies to and from the device are part of the compute time."""
        spent_ns = int((self.succeeded_s - self.queue_s) * 1e9) - self.compute_us * 1000
        return {
            "name": name,
            "version": version,
            "last_inference": int(self.last_s * 1000),
            "inference_count": self.rows,
            "execution_count": sum(count for count, _ in self.batches.values()),
            "inference_stats": {
                "success": _duration(self.succeeded, self.succeeded_s),
                "fail": _duration(self.failed, self.failed_s),
                "queue": _duration(self.succeeded, self.queue_s),
                "compute_input": {"count": self.succeeded, "ns": 0},
                "compute_infer": {"count": self.succeeded, "ns": self.compute_us * 1000},
                "compute_output": {"count": self.succeeded, "ns": max(0, spent_ns)},
            },
            "batch_stats": [
                {"batch_size": rows, "compute_infer": {"count": count, "ns": spent_us * 1000}}
                for rows, (count, spent_us) in sorted(self.batches.items())
            ],
        }


def _duration(count: int, spent_s: float) -> dict[str, int]:
    return {"count": count, "ns": int(spent_s * 1e9)}
