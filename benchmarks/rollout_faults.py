"""Faults of a rollout under checked traffic: kill -9 of the controller at every fault point, deaths of the other parts.

`python benchmarks/rollout_faults.py [--quick] [--json]`. After each fault the same command is given again; then every answer and
every acknowledged command is compared with the ledger's audit. Ends with 1 on any violation, or a fault that did not fire.

Where the faults of the site are (drills of `support.rollout_deaths` and `support.rollout_devices`):

    F30  a replica is killed                        stable_replica, canary_replica
    F31  all replicas of the canary are killed      dead_canary
    F32  the Serve controller is killed             rollout_site_faults.py
    F33  router, agent, GCS or Ray's head killed    router_of_two, only_router, agent; rollout_site_faults.py
    F34  the canary flaps                           flapping
    F35  devices break                              one_device, all_devices
    F36  no memory for the canary                   no_memory
    F37  the canary's replicas hang                 wedged_canary
    F38  overload                                   overloaded
    F39  clients give up                            vanishing_clients
    F40  a switch under 1000 clients                switch_in_flight
    -    the controller: killed at every point      the plans of `support.rollout_drills`
    -    the controller: stopped over a rollback    stopped_controller
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import rollout_devices  # noqa: E402
from support.rollout_deaths import DRILLS, SETTINGS_OF  # noqa: E402
from support.rollout_devices import NpuRolloutSite  # noqa: E402
from support.rollout_drills import PLANS, kills, once_each  # noqa: E402
from support.rollout_site import Drill, RolloutSite  # noqa: E402


def measure(quick: bool) -> list[Drill]:
    """Run everything."""
    rows: list[Drill] = []
    for plan in PLANS:
        print(f"kill -9 of the controller: {plan.name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            site = RolloutSite(Path(folder) / "site")
            try:
                rows += kills(site, plan, once_each if quick else list)
            finally:
                site.stop()
    for drill in DRILLS:
        rows.append(alone(drill, RolloutSite, SETTINGS_OF.get(drill, {})))
    for drill in rollout_devices.DRILLS:
        rows.append(alone(drill, NpuRolloutSite, {"replica_grace_s": 2.0}))
    return rows


def alone(drill: Callable[[Any], Drill], kind: type[RolloutSite], settings: dict[str, Any]) -> Drill:
    """Run a drill on a site of its own."""
    print(drill.__name__, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        site = kind(Path(folder) / "site", routers=2, request_timeout_s=5.0, **settings)
        try:
            return drill(site)
        except AssertionError as error:
            return Drill(drill.__name__, 0, {}, [str(error)[:600]], 0.0)
        finally:
            site.stop()


def show(rows: list[Drill]) -> None:
    """Print a line per fault; the points of a killed controller are lines of their own."""
    print(f"{'fault':48} {'fired':>6} {'good':>8}  {'other answers':20} {'longest gap':>11} {'violations':>10}")
    for row in rows:
        other = ", ".join(f"{n} x {status or 'broken'}" for status, n in sorted(row.answers.items()) if status != 200)
        gap = f"{row.recovery_s * 1e3:8.0f} ms" if row.answers else ""
        good = str(row.answers.get(200, "")) if row.answers else ""
        print(f"{row.name:48} {row.fired:6} {good:>8}  {other or 'none':20} {gap:>11} {len(row.violations):10}")
        for text in row.violations[:3]:
            print(f"    {text[:300]}")


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="each fault point once, at its first passing")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.quick)
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        show(rows)
    return int(any(row.violations or not row.fired for row in rows))


if __name__ == "__main__":
    sys.exit(main())
