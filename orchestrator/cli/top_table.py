"""The lines of `orchestrate top`, for 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

_GIB: Final = 1 << 30
_HEAD: Final = ("ENDPOINT", "GEN", "WT", "STATE", "UP", "REQ/S", "ERR/S", "QUEUE ms", "COMPUTE ms", "BATCH", "WAIT")
_WIDTHS: Final = (13, 3, 3, 8, 3, 7, 5, 9, 10, 5, 4)
_LEFT: Final = (0, 3)
_POOL: Final = "{:<12} {:>4} {:<18} {:>4} {:>4} {:>5} {:>11} {:>4} {:>6}"


def lines(shown: Mapping[str, Any], clock: str) -> list[str]:
    """Return the screen: routers, endpoints, devices; every line has at most 80 characters."""
    if "unreachable" in shown:
        return [f"orchestrate top  {clock}  {shown['unreachable']}"[:80]]
    found = [_title(shown, clock), "", _row(_HEAD)]
    found += [_row(_cells(row)) for row in shown["endpoints"]]
    if not shown["endpoints"]:
        found.append("(nothing is deployed)")
    found += ["", _POOL.format("POOL", "SLOT", "DEVICE", "UP", "RST", "NPU", "MEMORY GiB", "C", "W")]
    for device in shown["devices"]:
        found += _device(device)
    if not shown["devices"]:
        found.append("(no agent is connected)")
    return [line.rstrip()[:80] for line in found]


def _title(shown: Mapping[str, Any], clock: str) -> str:
    parts = [f"orchestrate top  {clock}"]
    for router in shown["routers"]:
        lag = _number(router["loop_lag_p99_ms"])
        parts.append(
            f"router {router['router']}: {router['cpu_percent']:.0f} % CPU, {router['resident_bytes'] / 2**20:.0f} MiB, lag {lag} ms"
        )
    # With many routers there is no room for each.
    if len(parts) > 2:
        total = sum(router["cpu_percent"] for router in shown["routers"])
        parts[1:] = [f"{len(parts) - 1} routers: {total:.0f} % CPU"]
    return "  ".join(parts)


def _cells(row: Mapping[str, Any]) -> Sequence[str]:
    return (
        row["endpoint"],
        str(row["generation"]),
        str(row["weight"]),
        row["state"],
        str(row["ready"]),
        _number(row["requests_per_s"]),
        _number(row["errors_per_s"]),
        f"{_number(row['queue_p50_ms'])}/{_number(row['queue_p99_ms'])}",
        f"{_number(row['compute_p50_ms'])}/{_number(row['compute_p99_ms'])}",
        _number(row["rows_per_batch"]),
        str(row["queued"]),
    )


def _row(cells: Sequence[str]) -> str:
    padded = [
        _cut(cell, width).ljust(width) if place in _LEFT else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    ]
    return " ".join(padded)


def _device(row: Mapping[str, Any]) -> list[str]:
    used, size = row["memory_used_bytes"], row["memory_bytes"]
    memory = f"{used / _GIB:.1f}/{size / _GIB:.1f}" if used is not None and size else "-"
    busy = "-" if row["used_ratio"] is None else f"{row['used_ratio'] * 100:.0f} %"
    cells = (
        _cut(row["pool"], 12),
        row["slot"],
        _cut(row["device"], 18),
        row["replicas"],
        row["restarts"],
        busy,
        memory,
    )
    found = [_POOL.format(*cells, _number(row["temperature_c"]), _number(row["power_w"]))]
    if row["healthy"] == 0:
        found.append("  unhealthy: npu-smi says so")
    if row["failed"]:
        found.append(f"  failed: {', '.join(row['failed'])}")
    return found


def _number(value: float | None) -> str:
    """Return at most four characters and a sign of size; a dash where there is none."""
    if value is None:
        return "-"
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    if value >= 10 or value == 0:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}".removeprefix("0")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
