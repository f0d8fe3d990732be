"""A rollback that could not load its build can be asked for again, by the same command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.ledger_samples import digest
from support.rollout_world import ENDPOINT, World

from orchestrator.core.errors import GateError
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
