"""Three routers on one port under load, while tables change and routers are killed; every answer is checked.

`python benchmarks/routers.py [--seconds 60 | --quick] [--json]`. Ends with 1 where an answer was wrong, or where a request failed
in another way than by the end of the killed router's connection.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from tests.support.serving_site import Load, ServingSite, generation, scale_bundle  # noqa: E402

ROUTERS: Final = 3
CLIENTS: Final = 9


class Storm:
    """What happens to the site meanwhile."""

    def __init__(self, site: ServingSite, folder: Path) -> None:
        self._site = site
        self._folder = folder
        self._bundle: Any = scale_bundle(folder / "g1", 2.0)
        self.generations, self.kills = 1, 0
        self.recovery_s: list[float] = []
        site.serve("scaled", generation(1, self._bundle), timeout_s=60)

    def change_table(self) -> None:
        """Bring up the next generation, and switch to it; generation n multiplies by n + 1."""
        old = generation(self.generations, self._bundle)
        self.generations += 1
        self._bundle = scale_bundle(self._folder / f"g{self.generations}", float(self.generations + 1))
        new = generation(self.generations, self._bundle)
        self._site.serve("scaled", old, {**new, "weight": 0, "state": "staged"}, timeout_s=60)
        self._site.serve("scaled", new, timeout_s=60)

    def kill(self, number: int) -> None:
        """Kill a router with SIGKILL, start it again, and wait until every replica is connected to all."""
        began = time.monotonic()
        process = self._site.followers.pop(number) if number else self._site.router
        assert process is not None
        process.kill()
        process.wait()
        if number:
            self._site.start_follower(number)
        else:
            self._site.start_router()
        ServingSite.wait(self._whole, 30, "all replicas at all routers")
        self.kills += 1
        self.recovery_s.append(time.monotonic() - began)

    def _whole(self) -> bool:
        status = self._site.admin.status()
        wanted = list(range(ROUTERS))
        return len(status["routers"]) == ROUTERS and all(row["routers"] == wanted for row in status["replicas"])


def measure(seconds: float) -> dict[str, Any]:
    """Run the storm and return what came of it."""
    random.seed(1)
    with tempfile.TemporaryDirectory(prefix="orc-bench-") as name:
        site = ServingSite(Path(name) / "site", routers=ROUTERS)
        try:
            site.start_router()
            for agent in ("one", "two"):
                site.start_agent(agent, slots=2)
            storm = Storm(site, Path(name))
            load = Load(site.url, "scaled", clients=CLIENTS)
            deadline = time.monotonic() + seconds
            try:
                while time.monotonic() < deadline:
                    storm.change_table()
                    storm.kill(random.randrange(ROUTERS))
            finally:
                load.stop()
        finally:
            site.stop()
    broken = Counter("connection" if status == 0 else f"{status} {text[:200]}" for status, text in load.failures)
    return {
        "answers": len(load.answers),
        "wrong": sum(factor != number + 1 for number, factor in load.answers),
        "broken_connections": broken.pop("connection", 0),
        "other_failures": dict(broken),
        "generations": storm.generations,
        "kills": storm.kills,
        "slowest_recovery_s": round(max(storm.recovery_s), 3),
    }


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true", help="10 seconds")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(10.0 if args.quick else args.seconds)
    print(json.dumps(found) if args.json else "\n".join(f"{key:20} {value}" for key, value in found.items()))
    expected = found["kills"] * CLIENTS
    return int(bool(found["wrong"] or found["other_failures"] or found["broken_connections"] > expected))


if __name__ == "__main__":
    sys.exit(main())
