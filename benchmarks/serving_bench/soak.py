"""Minutes of mixed load on many replicas: memory stays flat, and no answer is lost, doubled or another request's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from serving_bench.job import Job
from serving_bench.ours import Pool, echo_pool
from serving_bench.payloads import GRPC_PATH, every, small
from serving_bench.processes import members, memory_mib
from serving_bench.server import NotServed, load

REPLICAS: Final = 64
ROUTERS: Final = 2
CONNECTIONS: Final = {"json": 800, "binary": 800, "grpc": 400}
_SAMPLE_S: Final = 2.0
_WARM_SHARE: Final = 0.2


def _jobs(pool: Pool, seconds: float) -> list[Job]:
    path = "/v2/models/echo/infer"
    found = []
    for kind, connections in CONNECTIONS.items():
        requests = every(small(100), kind, "echo" if kind == "grpc" else path)
        port, protocol = (pool.grpc_port, "grpc") if kind == "grpc" else (pool.http_port, "http")
        method = GRPC_PATH if kind == "grpc" else ""
        found.append(Job(port, requests, protocol, method, connections, seconds, 1.0, check_every=1))
    return found


def measure(minutes: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return answers by kind, and how the memory of all routers and replicas went, the warm-up apart."""
    try:
        with echo_pool(routers=ROUTERS, replicas=REPLICAS, queue_limit=2 * sum(CONNECTIONS.values())) as pool:
            tell(f"soak of {minutes:g} minutes: {REPLICAS} replicas, {sum(CONNECTIONS.values())} connections")
            memory: list[float] = []
            with ThreadPoolExecutor(len(CONNECTIONS)) as threads:
                running = [threads.submit(load, job) for job in _jobs(pool, minutes * 60)]
                while not all(one.done() for one in running):
                    memory.append(memory_mib(members(pool.server.mark)))
                    time.sleep(_SAMPLE_S)
            rows = {kind: one.result() for kind, one in zip(CONNECTIONS, running, strict=True)}
    except NotServed as error:
        return {"absent": str(error)}
    steady = memory[int(len(memory) * _WARM_SHARE) : -1] or memory
    quarter = max(1, len(steady) // 4)
    first, last = statistics.median(steady[:quarter]), statistics.median(steady[-quarter:])
    return {
        "minutes": minutes,
        "replicas": REPLICAS,
        "routers": ROUTERS,
        "connections": sum(CONNECTIONS.values()),
        "rows": rows,
        "answers": sum(row["answers"].get("200", 0) for row in rows.values()),
        "other_answers": {s: n for row in rows.values() for s, n in row["answers"].items() if s != "200"},
        "wrong": sum(row["wrong"] for row in rows.values()),
        "lost": sum(row["unanswered"] for row in rows.values()),
        "rss_mib": [round(first, 1), round(last, 1)],
        "rss_growth": round(last / first - 1, 4),
    }
