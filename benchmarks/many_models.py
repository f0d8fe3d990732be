"""300 endpoints on two slots with room for a few models each: cold starts, what is loaded and unloaded, and a fair share;
and what models cost in processes of their own, and in one (`isolation: shared`).

`python benchmarks/many_models.py [--quick] [--json FILE]`
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.serving_site import ServingSite, generation, scale_bundle, slow_bundle

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}
BUILDS = 12
SLOTS = 2
MODELS_OF_A_SLOT = 6
MODEL_BYTES = 70 << 20


def rows(site: ServingSite) -> list[dict[str, Any]]:
    """Return what the agents say of every model on every slot."""
    return [row for agent in site.admin.status()["agents"] for row in agent["replicas"]]


def percentile(values: list[float], share: float) -> float:
    """Return a percentile of seconds; 0 of nothing."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


class Clients:
    """Closed-loop clients; the model of each request is drawn by `draw`."""

    def __init__(self, site: ServingSite, draw: Any, clients: int, pause_s: float = 0.0) -> None:
        self.took: list[tuple[str, float]] = []
        self.failed: list[str] = []
        self._site, self._draw, self._pause_s = site, draw, pause_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, seed: int) -> None:
        dice = random.Random(seed)
        with httpx.Client(base_url=self._site.url, timeout=60) as client:
            while not self._stop.is_set():
                name, begun = self._draw(dice), time.perf_counter()
                answer = client.post(f"/v2/models/{name}/infer", json=BODY)
                self.took.append((name, time.perf_counter() - begun))
                if answer.status_code != 200:
                    self.failed.append(f"{name}: {answer.status_code} {answer.text[:120]}")
                self._stop.wait(self._pause_s)

    def stop(self) -> None:
        """End the load."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def churn(folder: Path, endpoints: int, seconds: float) -> dict[str, Any]:
    """Zipf's load over all endpoints."""
    site = ServingSite(folder / "many")
    try:
        site.start_router()
        for number in range(SLOTS):
            site.start_agent(f"agent{number}", SLOTS, models="lazy", memory_bytes=MODELS_OF_A_SLOT * MODEL_BYTES)
        bundles = [scale_bundle(folder / f"bundle{i}", 2.0 + i) for i in range(BUILDS)]
        begun = time.perf_counter()
        site.put(
            {f"m{i}": {"pool": "edge", "generations": [generation(1, bundles[i % BUILDS])]} for i in range(endpoints)}
        )
        site.wait(
            lambda: len(found := rows(site)) == SLOTS * endpoints and all(row["proven"] for row in found), 300, "proven"
        )
        proven_s = time.perf_counter() - begun
        before, weights = rows(site), [1 / (rank + 1) for rank in range(endpoints)]
        names = [f"m{i}" for i in range(endpoints)]
        clients = Clients(site, lambda dice: dice.choices(names, weights)[0], 4, 0.02)
        most, deadline = 0, time.monotonic() + seconds
        while time.monotonic() < deadline:
            most = max(most, sum(row["pid"] > 0 for row in rows(site)))
            time.sleep(0.2)
        clients.stop()
        after = rows(site)
        loads = sum(row["loads"] for row in after) - sum(row["loads"] for row in before)
        took, cold = [t for _, t in clients.took], [row["load_s"] for row in after if row["loads"] and row["load_s"]]
        return {
            "endpoints": endpoints,
            "slots": SLOTS,
            "proof_of_all_s": round(proven_s, 2),
            "requests": len(took),
            "failed": len(clients.failed),
            "first_failures": clients.failed[:3],
            "most_processes": most,
            "loads": loads,
            "unloads": sum(row["unloads"] for row in after),
            "found_loaded": round(1 - loads / max(1, len(took)), 3),
            "cold_start_s": round(statistics.median(cold), 3),
            "warm_p50_ms": round(1e3 * percentile(took, 0.5), 2),
            "p99_s": round(percentile(took, 0.99), 3),
        }
    finally:
        site.stop()


def fair(folder: Path, seconds: float) -> dict[str, Any]:
    """A quiet endpoint alone on its slot, and beside one that is flooded."""
    site = ServingSite(folder / "fair")
    try:
        site.start_router()
        site.start_agent()
        bundle = slow_bundle(folder / "slow")
        site.serve("quiet", generation(1, bundle))
        site.serve("flooded", generation(1, slow_bundle(folder / "slow2", 421)))
        found: dict[str, Any] = {}
        for word, others in (("alone", 0), ("beside_a_flood", 24)):
            flood = Clients(site, lambda _: "flooded", others)
            quiet = Clients(site, lambda _: "quiet", 1, 0.03)
            time.sleep(seconds)
            quiet.stop()
            flood.stop()
            took = [t for _, t in quiet.took]
            found[word] = {
                "p50_ms": round(1e3 * percentile(took, 0.5), 1),
                "p99_ms": round(1e3 * percentile(took, 0.99), 1),
                "flood_per_s": round(len(flood.took) / seconds),
            }
        return found
    finally:
        site.stop()


def isolated(folder: Path, isolation: str, models: int, seconds: float) -> dict[str, Any]:
    """So many models, all loaded on one slot: memory as the kernel shares it out (PSS), time to be ready, latency in turn."""
    site = ServingSite(folder / isolation)
    try:
        site.start_router()
        site.start_agent()
        bundles = [
            scale_bundle(folder / f"{isolation}{i}", 2.0 + i % BUILDS, isolation=isolation) for i in range(BUILDS)
        ]
        begun = time.perf_counter()
        site.put(
            {f"m{i}": {"pool": "edge", "generations": [generation(1, bundles[i % BUILDS])]} for i in range(models)}
        )
        site.wait(lambda: len(site.admin.status()["replicas"]) == models, 300, "ready")
        ready_s = time.perf_counter() - begun
        turn = iter(range(1 << 30))
        clients = Clients(site, lambda _: f"m{next(turn) % models}", 1, 0.005)
        time.sleep(seconds)
        clients.stop()
        pids = {row["pid"] for row in site.admin.status()["replicas"]}
        took = [t for _, t in clients.took]
        return {
            "models": models,
            "processes": len(pids),
            "mib_per_model": round(sum(psutil.Process(pid).memory_full_info().pss for pid in pids) / models / 2**20, 2),
            "ready_s": round(ready_s, 2),
            "p50_ms": round(1e3 * percentile(took, 0.5), 2),
            "failed": len(clients.failed),
        }
    finally:
        site.stop()


def main() -> int:
    """Run all parts; exit code 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        found = {
            "churn": churn(folder, 60 if args.quick else 300, 10 if args.quick else 60),
            "fair": fair(folder, 4 if args.quick else 15),
        }
        size = (12, 2) if args.quick else (60, 10)
        own, shared = (isolated(folder, word, *size) for word in ("process", "shared"))
        ratios = {key: round(shared[key] / own[key], 3) for key in ("mib_per_model", "ready_s", "p50_ms")}
        found["isolation"] = {"process": own, "shared": shared, "shared_over_process": ratios}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    if args.json:
        args.json.write_text(json.dumps(found))
    return 1 if found["churn"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
