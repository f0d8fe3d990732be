"""A rollback that could not load its build can be asked for again, by the same command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.ledger_samples import digest
from support.rollout_world import ENDPOINT, World

from orchestrator.core.errors import GateError
from orchestrator.ledger import Owner
from orchestrator.rollout.rollback import rollback


@pytest.mark.parametrize("expect", [None, 3])
def test_a_rollback_that_failed_is_tried_again_as_a_new_one(tmp_path: Path, expect: int | None) -> None:
    world = World(tmp_path)
    for letter in "123":
        world.deploy(letter)
    for failed in (4, 5):
        world.site.spoil[digest("1")] = lambda answer: replace(answer, device="another")
        with pytest.raises(GateError):
            rollback(world.ledger, world.site, ENDPOINT, 1, expect, actor="bob")
        assert world.states()[failed] == "failed"
    world.site.spoil.clear()
    done = rollback(world.ledger, world.site, ENDPOINT, 1, expect, actor="bob")
    assert (done.generation, done.to, done.changed) == (6, 1, True)
    again = rollback(world.ledger, world.site, ENDPOINT, 1, expect, actor="bob")
    assert (again.generation, again.changed) == (6, False)
    assert world.weights() == {6: 100}


def test_a_rollback_that_was_committed_is_done_whoever_finishes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    for letter in "12":
        world.deploy(letter)
    passed: list[str] = []

    def point(name: str) -> None:
        passed.append(name)
        if name == "rollout.back_recorded":  # another operator takes the lead at the worst moment
            world.ledger.leases.acquire(f"endpoint/{ENDPOINT}", Owner.here("other"), ttl_s=30.0, seize=True)

    monkeypatch.setattr("orchestrator.rollout.rollback.point", point)
    done = rollback(world.ledger, world.site, ENDPOINT, actor="bob")
    assert passed == ["rollout.back_seized", "rollout.back_recorded"], "fenced before it published"
    assert (done.generation, done.to, done.changed) == (3, 1, True)
    assert world.ledger.generations.live(ENDPOINT) is not None
    monkeypatch.undo()
    again = rollback(world.ledger, world.site, ENDPOINT, expect=2, actor="ada")
    assert (again.generation, again.changed) == (3, False)
    assert world.weights() == {3: 100}
