"""A rollout without processes: a ledger, a site in a folder whose routers "count" what a test says, and a clock of our own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.ledger import Ledger, Owner, Rollout
from orchestrator.rollout.request import Deployed, DeployRequest
from orchestrator.rollout.stage import Pace
from orchestrator.rollout.strategy import Strategy
from support.fake_site import DEVICE, FakeSite, make_bundle
from support.ledger_samples import digest

ENDPOINT = "digits"


class CountingSite(FakeSite):
    """Counts requests by the weights of its table, cumulative and on disk, like a router does."""

    def traffic(self, requests: int, *, canary_errors: int = 0, **more: int) -> None:
        """Deal so many requests by the weights; of the canary's share so many end in errors."""
        table = self.table()
        found = table.endpoints.get(ENDPOINT)
        if found is None or found.split is None:
            return
        counts = self._load()
        weights = {g.generation: g.weight for g in found.generations}
        share = {number: requests * weights[number] // 100 for number in (found.split.stable, found.split.canary)}
        for number, served in share.items():
            bad = min(canary_errors, served) if number == found.split.canary else 0
            if served:
                arm = counts["arms"].setdefault(f"{number}/{weights[found.split.canary]}", {"requests": 0, "errors": 0})
                arm["requests"] += served
                arm["errors"] += bad
        if share[found.split.canary]:
            counts["row"] = counts["row"] + canary_errors if canary_errors >= share[found.split.canary] else 0
        (self.folder / "counts.json").write_text(json.dumps(counts))

    def evidence(self, endpoint: str) -> dict[str, Any]:
        self._check_up()
        counts = self._load()
        canary = 0
        arms = []
        for key, arm in counts["arms"].items():
            number, weight = (int(part) for part in key.split("/"))
            canary = max(canary, number)
            errors = {"execution_failed": arm["errors"]} if arm["errors"] else {}
            arms.append(
                {
                    "generation": number,
                    "traffic": "weighted",
                    "weight": weight,
                    "requests": arm["requests"],
                    "errors": errors,
                    "compute": {"1": {"100": arm["requests"]}},
                    "total": {"150": arm["requests"] - arm["errors"]},
                }
            )
        row = {"boot": "b", "version": 1, "arms": arms, "failures_in_row": {str(canary): counts["row"]}}
        return {"routers": [{**row, "pairs": None, "classes": {}}]}

    def _load(self) -> dict[str, Any]:
        path = self.folder / "counts.json"
        return json.loads(path.read_text()) if path.exists() else {"arms": {}, "row": 0}


@dataclass
class Clock:
    """Time that passes only while somebody sleeps; `each` happens at every sleep."""

    t: float = 1_000_000.0
    each: Callable[[], None] = lambda: None
    sleeps: int = 0
    most: int = 20_000

    def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        assert self.sleeps < self.most, "the controller waits for ever"
        self.t += max(seconds, 0.001)
        self.each()

    @property
    def pace(self) -> Pace:
        return Pace(lambda: self.t, self.sleep)


def strategy(steps: Sequence[Mapping[str, Any]] = (), **more: Any) -> Strategy:
    """A strategy in its stored form."""
    return Strategy.from_json({"kind": "canary", "steps": list(steps), **more})


def error_rate(**more: Any) -> dict[str, Any]:
    return {"metrics": [{"name": "error_rate", "margin": 0.2}], "min_samples": 50, **more}


@dataclass
class World:
    """An endpoint whose generation 1 is live."""

    folder: Path
    url: str = ""
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.url = self.url or f"sqlite:///{self.folder}/ledger.db"
        self.site = CountingSite(self.folder)
        for letter in "1234":
            if not (self.folder / "bundles" / letter).exists():
                make_bundle(self.folder, letter)
        self.ledger = Ledger.open(self.url)

    def request(self, letter: str, how: Strategy | None = None, **changes: Any) -> DeployRequest:
        values: dict[str, Any] = {
            "endpoint": ENDPOINT,
            "pool": "edge",
            "bundle": digest(letter),
            "path": self.folder / "bundles" / letter,
            "runtime": "onnx-cpu",
            "device": DEVICE,
            "actor": "ada",
            "ready_timeout_s": 5.0,
            "strategy": how or Strategy(),
        }
        return DeployRequest(**{**values, **changes})

    def deploy(self, letter: str, how: Strategy | None = None, **changes: Any) -> Deployed:
        from orchestrator.rollout.deploy import deploy

        asked = self.request(letter, how, **changes)
        return deploy(self.ledger, self.site, asked, Owner.here("test"), pace=self.clock.pace)

    def states(self) -> dict[int, str]:
        return {g.number: str(g.state) for g in self.ledger.generations.list(ENDPOINT)}

    def weights(self) -> dict[int, int]:
        return {g.generation: g.weight for g in self.site.table().endpoints[ENDPOINT].generations}

    def row(self, generation: int = 2) -> Rollout:
        found = self.ledger.rollouts.get(ENDPOINT, generation)
        assert found is not None
        return found
