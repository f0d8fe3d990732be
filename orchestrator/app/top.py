"""`top`: what the pool does, from two looks at the router a moment apart."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.app.wiring import Workplace
from orchestrator.cluster.local import status
from orchestrator.core.errors import Unreachable
from orchestrator.serving.admin import RouterAdmin

_SAMPLE: Final = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_QUEUE, _COMPUTE = "orchestrate_request_queue_seconds", "orchestrate_batch_compute_seconds"
_NPU: Final = {
    "used_ratio": "orchestrate_npu_utilization_ratio",
    "memory_used_bytes": "orchestrate_npu_memory_used_bytes",
    "memory_bytes": "orchestrate_npu_memory_size_bytes",
    "temperature_c": "orchestrate_npu_temperature_celsius",
    "power_w": "orchestrate_npu_power_watts",
    "healthy": "orchestrate_npu_healthy",
}

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Look:
    """The router at one moment; `series` by metric name."""

    at: float
    status: Mapping[str, Any]
    series: Mapping[str, Sequence[tuple[Labels, float]]]

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels."""
        return sum(value for have, value in self.series.get(name, ()) if labels.items() <= have.items())


def open_admin(workplace: Workplace, site: str = "") -> RouterAdmin:
    """Return the site's router.

    Raises:
        Unreachable: The site is down.
    """
    found = status(workplace.site(site))
    if not found.router_admin or not found.router_url:
        raise Unreachable(f"site {found.name!r} is {found.state}", hint="orchestrate up")
    return RouterAdmin(Path(found.router_admin))


def look(admin: RouterAdmin) -> Look:
    """Ask the router how it is.

    Raises:
        Unreachable: No answer.
    """
    told = admin.status()
    return Look(time.monotonic(), told, read_series(admin.metrics()))


def read_series(text: str) -> dict[str, list[tuple[Labels, float]]]:
    """Read the Prometheus text that the router writes."""
    found: dict[str, list[tuple[Labels, float]]] = {}
    for line in text.splitlines():
        sample = _SAMPLE.fullmatch(line)
        if sample is not None:
            labels = dict(_LABEL.findall(sample[2] or ""))
            found.setdefault(sample[1], []).append((labels, float(sample[3])))
    return found


def compare(before: Look, after: Look) -> dict[str, Any]:
    """Return what happened between two looks: `{"interval_s", "endpoints", "devices", "routers"}`; times in ms, None without data."""
    took_s = max(1e-6, after.at - before.at)
    return {
        "interval_s": round(took_s, 3),
        "endpoints": [_endpoint(row, before, after, took_s) for row in after.status["generations"]],
        "devices": [_device(agent, after) for agent in after.status["agents"]],
        "routers": _routers(before, after, took_s),
    }


def _endpoint(row: Mapping[str, Any], before: Look, after: Look, took_s: float) -> dict[str, Any]:
    labels = {"endpoint": str(row["endpoint"]), "generation": str(row["generation"]), "stage": "model"}

    def gained(name: str, **more: str) -> float:
        return max(0.0, after.sum(name, **labels, **more) - before.sum(name, **labels, **more))

    ended, good = gained("orchestrate_requests_total"), gained("orchestrate_requests_total", kind="ok")
    batches, rows = gained("orchestrate_batch_rows_count"), gained("orchestrate_batch_rows_sum")
    queue, compute = (_edges(name, before, after, labels) for name in (_QUEUE, _COMPUTE))
    return {
        **{key: row[key] for key in ("endpoint", "generation", "weight", "state", "ready", "queued", "in_flight")},
        "requests_per_s": round(ended / took_s, 2),
        "errors_per_s": round((ended - good) / took_s, 2),
        "queue_p50_ms": quantile(queue, 0.5),
        "queue_p99_ms": quantile(queue, 0.99),
        "compute_p50_ms": quantile(compute, 0.5),
        "compute_p99_ms": quantile(compute, 0.99),
        "rows_per_batch": round(rows / batches, 2) if batches else None,
        "devices": sorted({replica["device"] for replica in after.status["replicas"] if _serves(replica, row)}),
    }


def _serves(replica: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return replica["endpoint"] == row["endpoint"] and row["generation"] in replica["generations"]


def _edges(name: str, before: Look, after: Look, labels: Labels) -> list[tuple[float, float]]:
    """Return the cumulative counts of the interval by upper edge, seconds."""
    counts: dict[float, float] = {}
    for sign, found in ((1, after), (-1, before)):
        for have, value in found.series.get(f"{name}_bucket", ()):
            if labels.items() <= have.items():
                edge = float(have["le"])
                counts[edge] = counts.get(edge, 0.0) + sign * value
    return sorted(counts.items())


def quantile(edges: Iterable[tuple[float, float]], share: float) -> float | None:
    """Return a quantile of a cumulative histogram in ms, linear within a bucket; None without values.

    Values above the last finite edge count as that edge.
    """
    rows = list(edges)
    total = rows[-1][1] if rows else 0.0
    if total <= 0:
        return None
    low, below = 0.0, 0.0
    for edge, count in rows:
        if count >= share * total:
            if edge == float("inf"):
                return round(low * 1e3, 3)
            return round((low + (edge - low) * (share * total - below) / (count - below)) * 1e3, 3)
        low, below = edge, count
    return round(low * 1e3, 3)


def _device(agent: Mapping[str, Any], after: Look) -> dict[str, Any]:
    labels = {"pool": str(agent["pool"]), "slot": str(agent["slot"])}
    replicas = agent["replicas"]
    row: dict[str, Any] = {
        **{key: agent[key] for key in ("pool", "slot", "device")},
        "replicas": sum(replica["state"] == "ready" for replica in replicas),
        "failed": sorted({replica["endpoint"] for replica in replicas if replica["state"] == "failed"}),
        "restarts": sum(replica["restarts"] for replica in replicas),
    }
    for key, name in _NPU.items():
        found = [value for have, value in after.series.get(name, ()) if labels.items() <= have.items()]
        row[key] = found[0] if found else None
    return row


def _routers(before: Look, after: Look, took_s: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for labels, resident in after.series.get("orchestrate_router_resident_bytes", ()):
        router = labels["router"]
        spent = [x.sum("orchestrate_router_cpu_seconds_total", router=router) for x in (before, after)]
        lag = _edges("orchestrate_router_loop_lag_seconds", before, after, {"router": router})
        rows.append(
            {
                "router": int(router),
                "cpu_percent": round(max(0.0, spent[1] - spent[0]) / took_s * 100, 1),
                "resident_bytes": int(resident),
                "connections": int(after.sum("orchestrate_router_connections", router=router)),
                "loop_lag_p99_ms": quantile(lag, 0.99),
            }
        )
    return rows
