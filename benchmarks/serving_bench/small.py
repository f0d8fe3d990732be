"""Small tensors through an echo: requests a second at 32 connections and CPU per request, ours and everybody's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from serving_bench.contenders import Contender, Served
from serving_bench.job import Job
from serving_bench.ours import echo_pool
from serving_bench.payloads import (
    BINARY_FLOATS,
    FLOATS,
    GRPC_PATH,
    Arrays,
    bento_json,
    every,
    small,
)
from serving_bench.server import NotServed, Server, answers, checked, load
from serving_bench.wire import Request

CONNECTIONS: Final = 32
SAME: Final = {"json": "json", "native": "json", "binary": "binary", "raw": "binary", "grpc": "grpc"}
"""The row of the table in which a form counts."""

Row = dict[str, Any]


def requests_of(kind: str, path: str) -> tuple[Request, ...]:
    """Return the variants in a server's own form."""
    variants: list[Arrays] = small(FLOATS if SAME[kind] == "json" else BINARY_FLOATS)
    if kind == "native":
        return tuple(bento_json(path, arrays) for arrays in variants)
    return every(variants, kind, path)


def job_of(kind: str, path: str, port: int, mark: str, seconds: float) -> Job:
    """Return the job of a closed loop."""
    protocol, method = ("grpc", GRPC_PATH) if kind == "grpc" else ("http", "")
    requests = requests_of(kind, "echo" if kind == "grpc" else path)
    return Job(port, requests, protocol, method, CONNECTIONS, seconds, max(0.5, seconds / 3), mark=mark)


def ours(routers: int, seconds: float, tell: Callable[[str], None]) -> Row:
    """Measure our pool.

    Raises:
        NotServed: It does not start, or answers wrongly.
    """
    rows: Row = {}
    with echo_pool(routers=routers) as pool:
        for kind in ("json", "binary", "grpc"):
            port = pool.grpc_port if kind == "grpc" else pool.http_port
            tell(f"{pool.server.name} {kind}")
            rows[kind] = checked(load(job_of(kind, "/v2/models/echo/infer", port, pool.server.mark, seconds)))
    return rows


def theirs(contender: Contender, seconds: float, tell: Callable[[str], None]) -> Row:
    """Measure a contender; a form that it refuses becomes a row with the reason.

    Raises:
        NotServed: It cannot be installed, or does not start.
    """
    rows: Row = {SAME[kind]: {"absent": reason} for kind, reason in contender.absent.items()}
    python = contender.python()
    with Server(contender.name) as server:
        ports = contender.start(server, python, Served())
        for kind, path in contender.kinds.items():
            port = ports.grpc if kind == "grpc" else ports.http
            job = job_of(kind, path, port, server.mark, seconds)
            if contender.name.startswith("bare-http"):
                job = replace(job, requests=tuple(Request(r.wire, b"") for r in job.requests))
            server.wait(lambda job=job: answers(job), contender.ready_s)
            tell(f"{contender.name} {kind}")
            try:
                rows[SAME[kind]] = checked(load(job))
            except NotServed as error:
                rows[SAME[kind]] = {"absent": str(error)}
    return rows


def ratios(own: Row, rows: Mapping[str, Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Return ours over theirs by form and peer; the peer's row has both figures."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind in ("json", "binary", "grpc"):
        for name, row in rows.items():
            one, other = own.get(kind, {}), row.get(kind, {})
            if other.get("requests_per_s") and one.get("requests_per_s"):
                found.setdefault(kind, {})[name] = {
                    figure: round(one[figure] / max(other[figure], 1e-9), 3) for figure in ("requests_per_s", "cpu_us")
                }
    return found
