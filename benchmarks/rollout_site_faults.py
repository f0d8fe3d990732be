"""Claim: what holds Ray together may die in the middle of a canary; the site heals, and the rollout ends as without it.

    python benchmarks/rollout_site_faults.py [--json]

A local site serves `recipes/digits` under checked traffic. A canary holds half of the requests and waits for a person; then the
Serve controller, the GCS (Ray's head), the router and the agent are killed with SIGKILL, one after the other, and each time the
site is waited for. At last `orchestrate rollout resume` brings the canary live. Every answer is compared with the ledger's audit.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from rollout import Project, Row, Traffic, judge, prepared, promote

Find = Callable[[Row], list[psutil.Process]]


def _by_command(*words: str) -> Find:
    """Return a finder of the site's processes whose command line has a word; all of them descend from its supervisor."""

    def find(status: Row) -> list[psutil.Process]:
        supervisor = psutil.Process(int(status["pids"]["supervisor"]))
        found: list[psutil.Process] = []
        for process in supervisor.children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if any(word in line for word in words):
                found.append(process)
        return found

    return find


FAULTS: dict[str, Find] = {
    "Serve controller": _by_command("ServeController"),
    "GCS, Ray's head": _by_command("gcs_server"),
    "router": lambda status: [psutil.Process(int(status["pids"]["router"]))],
    "agent": _by_command("ray::ServeReplica", "orchestrator.serving.agent"),
}


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orc-bench-") as name:
        project = Project(Path(name))
        try:
            row = measure(project)
        finally:
            project.call("down")
    print(json.dumps(row) if options.json else _text(row))
    whole = all(fault["fired"] and fault["healed_s"] is not None for fault in row["faults"])
    return int(not whole or bool(row["wrong_generation"]) or row["ended"] != "live")


def measure(project: Project) -> Row:
    """Kill each part while a canary waits."""
    url, samples, expected, found = prepared(project)
    traffic = Traffic(project, url, samples, expected)
    time.sleep(1)
    project.strategy("canary: {steps: [{set_weight: 50}, {pause: {}}]}")
    promote(project, found["b"], allowed=(5,))
    times: list[tuple[str, float, int, float | None]] = []
    for name, find in FAULTS.items():
        print(f"killing: {name}", file=sys.stderr)
        _, status = project.call("site", "status")
        killed = 0
        for process in find(status):
            process.kill()
            killed += 1
        began = time.time()
        times.append((name, began, killed, _healed(project, began)))
        time.sleep(2)
    _, done = project.call("rollout", "resume", "--endpoint", "digits", allowed=(0, 1, 3))
    time.sleep(1)
    answers = traffic.stop()
    _, listed = project.call("endpoint", "list")
    live = listed["endpoints"][0]["bundle"] == found["b"]
    ended = "live" if live else str(done)
    faults = [
        {"fault": name, "fired": killed, "healed_s": healed, **_seen(answers, began, until)}
        for (name, began, killed, healed), until in zip(times, [*(row[1] for row in times[1:]), math.inf], strict=True)
    ]
    return {**judge(answers, [], project.audit(), {}), "faults": faults, "ended": ended}


def _healed(project: Project, began: float, patience_s: float = 120.0) -> float | None:
    """Return how long the site took to be up again; None: it is not."""
    while time.time() - began < patience_s:
        _, status = project.call("site", "status", allowed=(0, 3))
        if status.get("state") == "up":
            return time.time() - began
        time.sleep(0.5)
    return None


def _seen(answers: list[list[Any]], began: float, until: float) -> Row:
    """Return what clients saw from a fault to the next: failed requests, and the longest time without a good answer."""
    after = [row for row in answers if began <= row[2] < until]
    good = sorted([began, *(row[2] for row in after if row[3] == 200)])
    gap_s = max((b - a for a, b in pairwise(good)), default=None)
    return {"failed": sum(row[3] != 200 for row in after), "good": len(good) - 1, "gap_s": gap_s}


def _text(row: Row) -> str:
    lines = [f"{'killed':18} {'processes':>9} {'site up again':>14} {'failed':>7} {'longest gap':>12}"]
    for fault in row["faults"]:
        healed = "never" if fault["healed_s"] is None else f"{fault['healed_s']:.1f} s"
        lines.append(
            f"{fault['fault']:18} {fault['fired']:9} {healed:>14} {fault['failed']:7} {fault['gap_s'] or 0.0:10.2f} s"
        )
    lines.append(f"{row['requests']:,} requests, {row['failed']} failed, {row['wrong_generation']} of a wrong generation; "
                 f"the rollout ended: {row['ended']} {row['violations']} {dict(row['failures'])}")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
