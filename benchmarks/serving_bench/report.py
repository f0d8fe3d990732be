"""The tables that people read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final


def _short(reason: str) -> str:
    """A log's reason is at its end."""
    reason = " ".join(reason.split())
    return reason if len(reason) <= 240 else f"{reason[:40]} … {reason[-200:]}"


_NAMES: Final = {"json": "JSON, 100 floats", "binary": "binary, 1 KiB", "grpc": "gRPC, 1 KiB"}


def show(result: Mapping[str, Any]) -> None:
    """Print everything that was measured."""
    print(f"{result['cores']} cores, load {result['load_before']:.2f} before; {result['seconds']:.0f} s each")
    for kind, title in _NAMES.items():
        if any(kind in row for row in result["small"].values()):
            _small(kind, title, result)
    for name, part in result["models"].items():
        _model(name, part)
    if result.get("overload"):
        _overload(result["overload"])
    print("settings")
    for name, text in result["settings"].items():
        print(f"  {name:<18} {text}")


def _small(kind: str, title: str, result: Mapping[str, Any]) -> None:
    print(f"\nsmall tensors: {title}; {result['connections']} connections, closed loop"
          f"\n  {'':<18}{'requests/s':>11}{'us CPU':>9}{'p50 ms':>9}{'p99 ms':>9}{'MiB':>7}  ours/theirs: req/s, CPU")  # fmt: skip
    ratios = result["small_ratios"].get(kind, {})
    for name, row in result["small"].items():
        cell = row.get(kind) or ({"absent": row["absent"]} if "absent" in row else {})
        if not cell:
            continue
        if "absent" in cell:
            print(f"  {name:<18}absent: {_short(cell['absent'])}")
            continue
        ratio = ratios.get(name)
        tail = f"  {ratio['requests_per_s']:8.2f} x {ratio['cpu_us']:6.3f} x" if ratio else ""
        print(f"  {name:<18}{cell['requests_per_s']:11,.0f}{cell['cpu_us']:9.1f}{cell['p50_ms']:9.2f}{cell['p99_ms']:9.2f}"
              f"{cell['rss_mib']:7.0f}{tail}")  # fmt: skip


def _model(name: str, part: Mapping[str, Any]) -> None:
    if "absent" in part:
        print(f"\n{name}: absent: {_short(part['absent'])}")
        return
    bare = part["bare"]
    print(f"\n{name}, onnx-cpu, {bare['threads']} threads; the bare loop does best with batches of {bare['batch']}: "
          f"{bare['rows_per_s']:.1f} rows/s"
          f"\n  {'':<18}{'rows/s':>9}{'of bare':>9}{'CPU ms':>9}{'half load: rate':>17}{'p50 ms':>9}{'p99 ms':>9}{'of bare':>9}")  # fmt: skip
    for who, row in {"bare": bare, **part["servers"]}.items():
        if "absent" in row:
            print(f"  {who:<18}absent: {_short(row['absent'])}")
            continue
        half = row["half"]
        share, late = row["rows_per_s"] / bare["rows_per_s"], half["p99_ms"] / max(bare["half"]["p99_ms"], 1e-9)
        print(f"  {who:<18}{row['rows_per_s']:9.1f}{share:9.2f}{row['cpu_us'] / 1000:9.2f}{half['rate']:17.1f}"
              f"{half['p50_ms']:9.1f}{half['p99_ms']:9.1f}{late:9.2f}" + half.get("note", ""))  # fmt: skip


def _overload(part: Mapping[str, Any]) -> None:
    if "absent" in part:
        print(f"\noverload: absent: {_short(part['absent'])}")
        return
    print(f"\noverload: batches of {part['batch_ms']} ms, capacity {part['capacity']:.0f} requests/s; open loop")
    for name in ("half", "tenfold"):
        row = part[name]
        print(f"  {name:<8} {row['rate']:8.0f}/s offered {row['requests_per_s']:8.0f}/s admitted   p50 {row['p50_ms']:7.1f} ms  "
              f"p99 {row['p99_ms']:7.1f} ms   answers {row['answers']}, p99 of the generator's own delay {row['late_p99_ms']:.1f} ms")  # fmt: skip
    print(f"  p99 of the admitted: {part['p99_ratio']:.2f} x that at half load")
