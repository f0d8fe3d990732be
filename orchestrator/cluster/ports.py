"""Ports for a Ray head: all explicit, free, and outside the range from which the kernel takes ports for clients."""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.core.errors import InfraError

_NAMED: Final = 9
_LOWEST: Final = 10_000
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES: Final = 200


@dataclass(frozen=True, slots=True)
class RayPorts:
    """One free block: nine named ports, then one for each worker process."""

    gcs: int
    dashboard: int
    dashboard_metrics: int
    agent_http: int
    agent_grpc: int
    runtime_env_agent: int
    metrics_export: int
    node_manager: int
    object_manager: int
    first_worker: int
    last_worker: int


def pick_ports(workers: int, *, lowest: int = _LOWEST, highest: int | None = None) -> RayPorts:
    """Find `9 + workers` free consecutive ports on loopback.

    A port of the ephemeral range could be taken by any client between our look and Ray's bind, so these are below it.

    Raises:
        InfraError: There is no such block.
    """
    highest = highest if highest is not None else _ephemeral_start()
    size = _NAMED + workers
    for _ in range(_TRIES):
        if highest - size <= lowest:
            break
        first = random.randrange(lowest, highest - size)
        if all(is_free(port) for port in range(first, first + size)):
            gcs, dash, metrics, http, grpc, env, export, node, objects = range(first, first + _NAMED)
            return RayPorts(
                gcs, dash, metrics, http, grpc, env, export, node, objects, first + _NAMED, first + size - 1
            )
    raise InfraError(
        f"no {size} free consecutive ports between {lowest} and {highest}", hint="end what listens there, see `ss -ltn`"
    )


def is_free(port: int) -> bool:
    """Tell whether nothing listens on `port`, on loopback or on all interfaces."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _ephemeral_start() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
