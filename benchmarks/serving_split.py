"""Claim: whatever a rollout does to its table and a canary to itself, no user notices.

`python benchmarks/serving_split.py [--quick] [--seconds 120] [--seed 1] [--json]`. Two routers, two slots, clients of REST and
gRPC, a part of them with inputs that the canary alone refuses. Meanwhile the weights, the mirror, sticky and header routes
change at random, and the canary's replicas are killed and stopped for a moment. Ends with 1 where a client got an error, or an
answer that is not its generation's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.serving_site import ServingSite, generation, scale_bundle  # noqa: E402
from support.split_site import POISON, Bundles, Crowd, picky_bundle, split  # noqa: E402

FULL_S, QUICK_S = 120.0, 20.0
HEADERS = [{"name": "x-user", "how": "exact", "value": "u1"}]
ACTS = ("table", "table", "table", "table", "none", "kill", "stop")


def act(site: ServingSite, bundles: Bundles, chance: random.Random) -> str:
    """Change the table, or do something to a replica of the canary; returns what."""
    name = chance.choice(ACTS)
    if name == "table":
        weight, mirror = chance.choice([0, 10, 50, 100]), chance.choice([0, 20, 100])
        sticky = chance.choice(["", "x-user"])
        split(site, bundles, weight, mirror=mirror, sticky=sticky, headers=HEADERS)
    elif name == "none":
        rows = [generation(1, bundles[1]), generation(2, bundles[2], 0, "warm")]
        site.put({"scale": {"pool": "edge", "generations": rows}})
    else:
        pids = [row["pid"] for row in site.admin.status()["replicas"] if row["generations"] == [2]]
        if not pids:
            return "nothing"
        pid = chance.choice(pids)
        os.kill(pid, signal.SIGKILL if name == "kill" else signal.SIGSTOP)
        if name == "stop":
            time.sleep(0.3)
            os.kill(pid, signal.SIGCONT)
    return name


def measure(seconds: float, seed: int) -> dict[str, Any]:
    """Let a random rollout run under load."""
    chance, acts = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        bundles = {1: scale_bundle(Path(folder) / "one", 1.0), 2: picky_bundle(Path(folder) / "two", 2.0)}
        site = ServingSite(Path(folder) / "site", routers=2)
        try:
            site.start_router()
            site.start_agent(slots=2)
            site.serve("scale", generation(1, bundles[1]), generation(2, bundles[2], weight=0, state="staged"))
            crowds = {
                "rest": Crowd(site, clients=3),
                "refused by the canary": Crowd(site, body=POISON, clients=1),
                "grpc": Crowd(site, clients=2, grpc=True),
            }
            end = time.monotonic() + seconds
            with crowds["rest"], crowds["refused by the canary"], crowds["grpc"]:
                while time.monotonic() < end:
                    acts[act(site, bundles, chance)] += 1
                    time.sleep(chance.random() * 0.6)
            logs = "".join((site.folder / name).read_text() for name in ("router.log", "router-1.log"))
        finally:
            site.stop()
    rows = {name: {"stable": c.seen[1], "canary": c.seen[2], "wrong": c.wrong[:5]} for name, c in crowds.items()}
    return {
        "seed": seed,
        "seconds": seconds,
        "acts": dict(acts),
        "clients": rows,
        "tracebacks": logs.count("Traceback"),
    }


def main() -> int:
    """Measure and tell; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_S:.0f} s instead of {FULL_S:.0f}")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    asked = parser.parse_args()
    found = measure(asked.seconds or (QUICK_S if asked.quick else FULL_S), asked.seed)
    bad = found["tracebacks"] or any(row["wrong"] for row in found["clients"].values())
    if asked.json:
        print(json.dumps(found))
    else:
        print("acts:", ", ".join(f"{count} x {name}" for name, count in found["acts"].items()))
        for name, row in found["clients"].items():
            print(
                f"{name:24} stable {row['stable']:8} canary {row['canary']:8} wrong {len(row['wrong'])} {row['wrong']}"
            )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
