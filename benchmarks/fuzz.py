"""Fuzz HTTP, link frames and request bodies with atheris, a minute each: `python benchmarks/fuzz.py [--quick] [--json]`.

Ends with 1 where a target raised; libFuzzer then prints the input. Without atheris it says so and ends with 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FUZZ = Path(__file__).resolve().parents[1] / "tests" / "fuzz"
TARGETS = ("http", "link", "tensors")


def main() -> int:
    """Fuzz each target in a process of its own, and print how many inputs it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ten seconds each")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed, nothing is fuzzed: pip install atheris")
        return 0
    rows: dict[str, dict[str, int]] = {}
    failed = False
    for target in TARGETS:
        command = [sys.executable, str(FUZZ / f"fuzz_{target}.py"), "--seconds", "10" if args.quick else "60"]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        counts = [int(found) for found in re.findall(r"^#(\d+)\s", done.stderr, re.MULTILINE)]
        rows[target] = {"inputs": max(counts, default=0), "exit_code": done.returncode}
        if done.returncode:
            failed = True
            print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
        elif not args.json:
            print(f"{target:8} {rows[target]['inputs']:9,} inputs, nothing found")
    if args.json:
        print(json.dumps(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
