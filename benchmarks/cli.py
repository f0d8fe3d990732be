"""Claim: `orchestrate --help` is the fastest of its peers'; `validate` takes at most 0.4 s, `plan` at most 1 s.

    python benchmarks/cli.py [--quick] [--json]

Each peer runs from an environment of its own, interleaved with ours, as a fresh process; medians of wall seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import ROOT, peer_environment

PEERS = {
    "dvc": (["dvc"], ["dvc", "--help"]),
    "olive": (["olive-ai", "requests"], ["olive", "--help"]),
    "prefect": (["prefect"], ["prefect", "--help"]),
    "dstack": (["dstack"], ["dstack", "--help"]),
    "zenml": (["zenml"], ["zenml", "--help"]),
    "sky": (["skypilot"], ["sky", "--help"]),
}
QUIET = {
    "DVC_NO_ANALYTICS": "1",
    "ZENML_ANALYTICS_OPT_IN": "false",
    "DO_NOT_TRACK": "1",
    "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
}


def seconds(command: list[str], folder: Path, home: Path) -> float:
    """Return the wall seconds of one run."""
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **QUIET, "HOME": str(home)}, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="only the peers that are installed already, 3 runs each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ours = str(Path(sys.executable).parent / "orchestrate")
    recipe = str(ROOT / "recipes" / "digits" / "recipe.yaml")
    commands = {
        "orchestrate --help": [ours, "--help"],
        "orchestrate validate": [ours, "validate", recipe],
        "orchestrate plan": [ours, "plan", recipe],
    }
    for name, (packages, command) in PEERS.items():
        installed = (ROOT / ".bench" / name / "stamp").exists()
        binaries = None if options.quick and not installed else peer_environment(name, *packages)
        if binaries is not None:
            commands[name] = [str(binaries / command[0]), *command[1:]]
    rounds = 3 if options.quick else 7
    with tempfile.TemporaryDirectory() as temp:
        folder, home = Path(temp), Path(temp) / "home"
        home.mkdir()
        times: dict[str, list[float]] = {name: [] for name in commands}
        for command in commands.values():
            seconds(command, folder, home)  # once unmeasured: first runs write settings and byte code
        for _ in range(rounds):
            for name, command in commands.items():
                times[name].append(seconds(command, folder, home))
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians["orchestrate --help"]
    ratios = {name: medians[name] / base for name in medians if name in PEERS}
    if options.json:
        print(json.dumps({"seconds": medians, "help_ratio": ratios, "rounds": rounds}))
        return
    for name, value in medians.items():
        ratio = f"   {ratios[name]:5.1f} x ours" if name in ratios else ""
        print(f"{name:<22}{value:7.3f} s{ratio}")


if __name__ == "__main__":
    main()
