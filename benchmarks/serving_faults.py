"""Faults of the data plane under checked load, each several times: what clients saw, and how long recovery took.

`python benchmarks/serving_faults.py [--quick] [--json]`. Ends with 1 where an answer was wrong, a well-formed request got
500, or a fault did not fire.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import fault_drills as drills  # noqa: E402
from support import process_drills  # noqa: E402
from support.serving_site import ServingSite  # noqa: E402

RATIO = 2.0
"""Most that the 99th percentile of admitted requests may grow from half load to ten times what the pool can do."""


def measure(rounds: int) -> list[dict[str, Any]]:
    """Run every drill `rounds` times against one router."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        site = ServingSite(Path(folder) / "site", **drills.SETTINGS)
        try:
            site.start_router()
            drills.table(site, *drills.ENDPOINTS)
            for number in range(rounds):
                for drill in drills.DRILLS:
                    print(f"\rround {number + 1} of {rounds}: {drill.__name__:16}", end="", file=sys.stderr, flush=True)
                    rows.append(asdict(drill(site)))
            log = (site.folder / "router.log").read_text()
        finally:
            site.stop()
    if "Traceback" in log:
        raise SystemExit(log[-3000:])
    rows += deaths(rounds)
    print(file=sys.stderr)
    return rows


def deaths(rounds: int) -> list[dict[str, Any]]:
    """Kill whole processes beside others that live."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        site = process_drills.site_of(Path(folder))
        try:
            for number in range(rounds):
                for drill in process_drills.DRILLS:
                    print(f"\rround {number + 1} of {rounds}: {drill.__name__:32}", end="", file=sys.stderr, flush=True)
                    rows.append(asdict(drill(site)))
        finally:
            site.stop()
    return rows


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with the rows."""
    problems = [f"{row['name']}: {row['wrong'][:3]}" for row in rows if row["wrong"]]
    problems += [f"{row['name']}: did not fire" for row in rows if not row["fired"]]
    problems += [f"{row['name']}: {row['answers']} {row['errors']}" for row in rows if 500 in row["answers"]]
    ratios = [row["figures"]["ratio"] for row in rows if "ratio" in (row["figures"] or {})]
    if min(ratios) > RATIO:
        problems.append(f"overload: p99 grew {min(ratios):.2f} times at best, {RATIO} are allowed")
    return problems


def show(rows: list[dict[str, Any]]) -> None:
    """Print one line per drill: the worst of its rounds."""
    print(f"{'fault':20} {'fired':>7} {'good':>8}  {'other answers':28} {'worst recovery':>14}")
    for name in dict.fromkeys(row["name"] for row in rows):
        same = [row for row in rows if row["name"] == name]
        others: dict[int, int] = {}
        for row in same:
            for status, count in row["answers"].items():
                if status != 200:
                    others[status] = others.get(status, 0) + count
        good, fired = (sum(row["answers"].get(200, 0) for row in same), sum(row["fired"] for row in same))
        told = ", ".join(f"{count} x {status or 'broken'}" for status, count in sorted(others.items())) or "none"
        print(f"{name:20} {fired:7} {good:8}  {told:28} {max(row['recovery_s'] for row in same) * 1e3:11.0f} ms")
    for row in rows:
        if "ratio" in (row["figures"] or {}):
            f = row["figures"]
            print(
                f"overload: p99 {f['half_p99_ms']:.0f} ms at half load, {f['p99_ms']:.0f} ms at ten times capacity: {f['ratio']:.2f}"
            )


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round instead of five")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = measure(1 if args.quick else 5)
    problems = verdict(rows)
    if args.json:
        print(json.dumps({"rows": rows, "problems": problems}))
    else:
        show(rows)
        print(*problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
