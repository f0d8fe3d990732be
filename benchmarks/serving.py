"""Our pool beside other servers: same machine, same run, same tensors and models, every peer in an environment of its own.

    python benchmarks/serving.py [--quick] [--json] [--only PEER,…] [--parts small,models,overload]

Small tensors through an echo (closed loop of 32 connections), real models on ONNX Runtime (throughput, and an open loop at
half of what the bare session does), and ten times too much. Peers are installed once below `.bench/`; one that cannot be is
in the table with the reason. CPU is that of a server's whole process tree. Ratios are ours/theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
from typing import Any

from peers import ROOT

sys.path.insert(0, str(ROOT))

from serving_bench import models, overload, small
from serving_bench.contenders import CONTENDERS, Contender
from serving_bench.ours import cores
from serving_bench.report import show
from serving_bench.server import NotServed

PARTS = ("small", "models", "overload")
QUICK_S, FULL_S = 3.0, 10.0


def tell(text: str) -> None:
    """Say on stderr what is measured now."""
    print(text, file=sys.stderr, flush=True)


def measure_small(contenders: list[Contender], seconds: float) -> dict[str, Any]:
    """Return rows of all servers and the ratios of our better one."""
    rows: dict[str, Any] = {}
    for routers in (1, 2):
        try:
            rows[f"ours-{routers}"] = small.ours(routers, seconds, tell)
        except NotServed as error:
            rows[f"ours-{routers}"] = {"absent": str(error)}
    for contender in contenders:
        try:
            rows[contender.name] = small.theirs(contender, seconds, tell)
        except NotServed as error:
            rows[contender.name] = {"absent": str(error)}
    own = {name: row for name, row in rows.items() if name.startswith("ours") and "json" in row}
    if not own:
        return {"small": rows, "small_ratios": {}, "ratios": {}, "ratios_of": None}
    best = max(own, key=lambda name: own[name]["json"].get("requests_per_s", 0))
    others = {name: row for name, row in rows.items() if name not in own}
    found = small.ratios(own[best], others)
    return {"small": rows, "small_ratios": found, "ratios": found.get("json", {}), "ratios_of": best}


def measure(contenders: list[Contender], parts: list[str], quick: bool) -> dict[str, Any]:
    """Measure everything that is asked for."""
    seconds = QUICK_S if quick else FULL_S
    load_before = os.getloadavg()[0]
    result: dict[str, Any] = {"ratios": {}, "ratios_of": None, "small": {}, "small_ratios": {}, "models": {}}
    if "small" in parts:
        result |= measure_small(contenders, seconds)
    if "overload" in parts:
        result["overload"] = overload.measure(seconds, tell)
    if "models" in parts:
        for recipe in models.RECIPES:
            result["models"][recipe] = models.measure(recipe, contenders, seconds, tell)
    return result | {
        "settings": {contender.name: contender.settings for contender in contenders},
        "connections": small.CONNECTIONS,
        "seconds": seconds,
        "cores": cores(),
        "load_before": load_before,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_S:.0f} s a measurement instead of {FULL_S:.0f}")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--only", default="", help=f"peers: {', '.join(c.name for c in CONTENDERS)}")
    parser.add_argument("--parts", default="", help=f"what to measure: {', '.join(PARTS)}")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name]
    parts = options.parts.split(",") if options.parts else list(PARTS)
    unknown = ({*names} - {c.name for c in CONTENDERS}) | ({*parts} - {*PARTS})
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2
    )  # children inherit it
    contenders = [contender for contender in CONTENDERS if not names or contender.name in names]
    result = measure(contenders, parts, options.quick)
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
