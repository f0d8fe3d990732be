from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from support.rollout_world import World, strategy

from orchestrator.core.errors import Unreachable
from orchestrator.rollout.probe import Prober


class Site:
    def __init__(self, *, down: bool = False) -> None:
        self.asked: Counter[int] = Counter()
        self.down = down

    def infer(self, endpoint: str, generation: int, inputs: Any) -> None:
        assert endpoint == "digits"
        assert inputs["image"].shape == (1, 4)
        self.asked[generation] += 1
        if self.down:
            raise Unreachable("away")


def wait(site: Site) -> None:
    deadline = time.monotonic() + 20
    while min(site.asked[1], site.asked[2]) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_golden_samples_go_to_both_while_it_is_active(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.deploy("1")
    world.deploy("2", strategy())
    generations = world.ledger.generations.list("digits")
    world.ledger.close()
    for site in (Site(), Site(down=True)):
        with Prober(site, generations, 200.0) as prober:  # pyright: ignore[reportArgumentType]
            time.sleep(0.1)
            assert not site.asked
            prober.active = True
            wait(site)
        assert abs(site.asked[1] - site.asked[2]) <= 1
    with Prober(Site(), generations, 0.0) as prober:  # pyright: ignore[reportArgumentType]
        prober.active = True
    (tmp_path / "bundles" / "1" / "golden.safetensors").unlink()
    site = Site()
    with Prober(site, generations, 200.0) as prober:  # pyright: ignore[reportArgumentType]
        prober.active = True
        time.sleep(0.1)
    assert not site.asked[1]
