"""Before a rollout: is there memory for both generations, and what fits where there is not?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.rollout.capacity import Build, PoolFacts, check
from orchestrator.rollout.strategy import SetWeight, Strategy

MIB = 1 << 20
CANARY = Strategy(kind="canary", steps=(SetWeight(10),))
STABLE = Build(1, "digits", "sha256:old", file_bytes={"": 100 * MIB})
NEW = Build(2, "digits", "sha256:new", file_bytes={"": 100 * MIB})


def agent(slot: int = 0, *, host: str = "here", **more: Any) -> dict[str, Any]:
    held = {"endpoint": "digits", "bundle": "sha256:old", "state": "ready", "memory_bytes": 300 * MIB}
    return {"pool": "edge", "slot": slot, "host": host, "soc": "Ascend310P3", "replicas": [held], **more}


def status(*agents: Mapping[str, Any]) -> dict[str, Any]:
    return {"agents": list(agents)}


def test_a_canary_like_the_live_one_is_taken_to_need_as_much() -> None:
    found = check(status(agent()), STABLE, NEW, CANARY, PoolFacts("edge"), free={"here": 600 * MIB})
    assert found.fits
    assert "300.0 MiB in each of 1 slots" in found.text
    assert found.offer == ""


def test_a_larger_one_needs_more_in_proportion() -> None:
    larger = Build(2, "digits", "sha256:new", file_bytes={"": 200 * MIB})
    found = check(status(agent()), STABLE, larger, CANARY, PoolFacts("edge"), free={"here": 700 * MIB})
    assert not found.fits
    assert "needs 600.0 MiB" in found.text


def test_slots_of_one_host_need_it_together_and_fewer_are_offered() -> None:
    four = status(*(agent(slot) for slot in range(4)))
    found = check(four, STABLE, NEW, CANARY, PoolFacts("edge"), free={"here": 1000 * MIB})
    assert not found.fits
    assert "1.2 GiB together; 744.0 MiB are free" in found.text
    assert "orchestrate endpoint scale digits --slots 2" in found.offer
    assert "models: lazy" in found.offer
    assert check(four, STABLE, NEW, CANARY, PoolFacts("edge"), slots=2, free={"here": 1000 * MIB}).fits


def test_the_limit_of_the_pool_counts_all_that_a_slot_holds() -> None:
    found = check(status(agent()), STABLE, NEW, CANARY, PoolFacts("edge", memory_bytes=512 * MIB), free={})
    assert not found.fits
    assert "holds 300.0 MiB and would need 300.0 MiB more; its `memory` is 512.0 MiB" in found.text
    assert "raise `memory` of pool 'edge'" in found.offer
    assert check(status(agent()), STABLE, NEW, CANARY, PoolFacts("edge", memory_bytes=600 * MIB), free={}).fits


def test_a_device_that_says_what_it_has_is_believed() -> None:
    figures = {"memory_used_bytes": 900 * MIB, "memory_bytes": 1000 * MIB}
    found = check(status(agent(figures=figures)), STABLE, NEW, CANARY, PoolFacts("edge"), free={"here": 1e12})
    assert not found.fits
    assert "has 100.0 MiB of 1000.0 MiB free, 164.0 MiB are needed" in found.text


def test_what_is_loaded_already_needs_nothing() -> None:
    found = check(status(agent()), None, STABLE, CANARY, PoolFacts("edge"), free={"here": 0})
    assert found.fits
    assert "is loaded already" in found.text


def test_a_lazy_pool_holds_one_at_a_time_but_cannot_split() -> None:
    pool = PoolFacts("edge", lazy=True, memory_bytes=512 * MIB)
    split = check(status(agent()), STABLE, NEW, CANARY, pool, free={})
    assert not split.fits
    assert "each would push out the other" in split.text
    assert "direct: {}" in split.offer
    assert check(status(agent()), STABLE, NEW, Strategy(), pool, free={}).fits
    small = PoolFacts("edge", lazy=True, memory_bytes=200 * MIB)
    assert not check(status(agent()), STABLE, NEW, Strategy(), small, free={}).fits
    assert check(status(agent()), STABLE, NEW, CANARY, PoolFacts("edge", lazy=True), free={}).fits


def test_what_another_host_has_is_not_guessed() -> None:
    found = check(status(agent(host="far")), STABLE, NEW, CANARY, PoolFacts("edge"), free={"here": 0})
    assert found.fits
    assert "what far has free is not known here" in found.text


def test_a_pool_without_agents_has_no_room() -> None:
    found = check(status(), STABLE, NEW, CANARY, PoolFacts("edge"), free={})
    assert not found.fits
    assert found.to_json() == {
        "fits": False,
        "text": "pool 'edge' has no agent",
        "offer": "orchestrate up, or another pool",
    }
