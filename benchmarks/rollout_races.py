"""Four promoters and a rollbacker race for each next generation, on SQLite and on PostgreSQL; every answer is judged.

`python benchmarks/rollout_races.py [--rounds 100 | --quick] [--json]`. Ends with 1 where a round has no winner or two, a number
is missing or given twice, an acknowledged generation is lost, a refusal names nobody, or a fenced writer wrote. PostgreSQL is
a server of its own on loopback; without its programs only SQLite is raced.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.postgres import temporary_server  # noqa: E402
from support.rollout_racer import judge, race  # noqa: E402


def measure(url: str, rounds: int) -> dict[str, Any]:
    """Race once and return the figures, with all that was wrong."""
    began = time.monotonic()
    seen = race(url, rounds=rounds)
    took_s = time.monotonic() - began
    figures, wrong = judge(url, seen, rounds=rounds)
    return {**figures, "seconds": round(took_s, 1), "violations": [f"{one.kind}: {one.text}" for one in wrong]}


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="20 rounds")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rounds = 20 if args.quick else args.rounds
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="orc-race-"))
        found["sqlite"] = measure(f"sqlite:///{folder}/ledger.db", rounds)
        server = stack.enter_context(temporary_server())
        if server is not None:
            found["postgresql"] = measure(server.database(), rounds)
    if args.json:
        print(json.dumps(found))
    else:
        for name in found["sqlite"]:
            print(f"{name:24}" + "".join(f"{backend} {one[name]!s:12}" for backend, one in found.items()))
    return int(any(one["violations"] for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
