"""Ten times more than a pool can do: what is admitted must not wait longer than it does at half load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from serving_bench.job import Job
from serving_bench.ours import echo_pool
from serving_bench.payloads import every, small
from serving_bench.server import NotServed, load

BATCH_MS: Final = 64.0
"""A slow device: its pool is at its limit while router and generator are idle, so that neither is what is measured."""
BATCH, QUEUE = 32, 32
"""Rows of a batch, of which a replica holds two; and what may wait beside them."""
CONNECTIONS: Final = 1024
_REFUSED: Final = ("200", "429", "503")


def measure(seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return capacity, and answers and latencies at half of it and at ten times it; open loop, latencies of good answers."""
    try:
        with echo_pool(batch_ms=BATCH_MS, queue_limit=QUEUE) as pool:
            requests = every(small(16), "json", "/v2/models/echo/infer")

            def job(rate: float, connections: int, length: float) -> Job:
                port, mark = pool.http_port, pool.server.mark
                return Job(port, requests, "http", "", connections, length, seconds / 2, rate, mark=mark)

            tell("overload")
            capacity = load(job(0.0, 2 * BATCH + QUEUE, seconds))["requests_per_s"]
            rows = {name: load(job(capacity * times, CONNECTIONS, 2 * seconds)) | {"rate": capacity * times}
                    for name, times in (("half", 0.5), ("tenfold", 10.0))}  # fmt: skip
    except NotServed as error:
        return {"absent": str(error)}
    bad = {s: n for row in rows.values() for s, n in row["answers"].items() if s not in _REFUSED}
    ratio = rows["tenfold"]["p99_ms"] / max(rows["half"]["p99_ms"], 1e-9)
    return {"batch_ms": BATCH_MS, "queue_limit": QUEUE, "capacity": capacity, **rows, "p99_ratio": ratio, "bad": bad}
