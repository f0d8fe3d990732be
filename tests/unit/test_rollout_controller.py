from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.rollout_world import ENDPOINT, World, strategy

from orchestrator.core.errors import Conflict, GateError, Waiting
from orchestrator.rollout.rollback import rollback

WALK = [{"set_weight": 10}, {"pause": {"duration_s": 10}}, {"set_weight": 50}, {"pause": {"min_requests": 30}}]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.deploy("1")
    yield made
    made.ledger.close()


def test_a_canary_walks_its_steps_and_the_old_one_stays_warm(world: World) -> None:
    world.clock.each = lambda: world.site.traffic(10)
    began = world.clock.t
    done = world.deploy("2", strategy(WALK))
    assert (done.generation, done.previous) == (2, 1)
    assert world.clock.t - began >= 10
    assert world.states() == {1: "warm", 2: "live"}
    assert world.weights() == {1: 0, 2: 100}
    seen = [{g.generation: g.weight for g in table.endpoints[ENDPOINT].generations} for table in world.site.tables()]
    assert [weights.get(2) for weights in seen if 2 in weights][0] == 0
    assert {0, 10, 50, 100} == {weights[2] for weights in seen if 2 in weights}
    row = world.row()
    assert (str(row.state), row.step, row.weight) == ("succeeded", 4, 100)


def test_a_gate_waits_for_a_person(world: World) -> None:
    how = strategy([{"set_weight": 20}, {"pause": {}}, {"set_weight": 60}])
    with pytest.raises(Waiting, match="waits for a person") as caught:
        world.deploy("2", how)
    assert caught.value.exit_code == 5
    assert world.weights() == {1: 80, 2: 20}
    with pytest.raises(Waiting):
        world.deploy("2", how)
    world.ledger.rollouts.ask(ENDPOINT, "resume", actor="bob")
    assert world.deploy("2", how).generation == 2
    assert world.states() == {1: "warm", 2: "live"}


def test_abort_takes_the_canary_back(world: World) -> None:
    how = strategy([{"set_weight": 20}, {"pause": {}}])
    with pytest.raises(Waiting):
        world.deploy("2", how)
    world.ledger.rollouts.ask(ENDPOINT, "abort", actor="bob")
    with pytest.raises(GateError, match="aborted by an operator"):
        world.deploy("2", how)
    assert world.states() == {1: "live", 2: "failed"}
    assert world.weights() == {1: 100}


def test_rollback_to_the_warm_one_is_two_writes(world: World) -> None:
    world.deploy("2")
    before = len(world.site.tables())
    done = rollback(world.ledger, world.site, ENDPOINT, actor="bob", reason="bad")
    assert (done.generation, done.to, done.was, done.changed) == (3, 1, 2, True)
    assert world.states() == {1: "retired", 2: "retired", 3: "live"}
    assert {g.generation: g.weight for g in world.site.tables()[before].endpoints[ENDPOINT].generations} == {
        1: 0,
        2: 0,
        3: 100,
    }


def test_rollback_of_a_canary_takes_it_back_and_fences_its_controller(world: World) -> None:
    def roll_back() -> None:
        world.clock.each = lambda: None
        done = rollback(world.ledger, world.site, ENDPOINT, actor="bob")
        assert (done.generation, done.aborted) == (1, 2)

    world.clock.each = roll_back
    with pytest.raises(Conflict, match="no longer ours"):
        world.deploy("2", strategy(WALK))
    assert world.states() == {1: "live", 2: "failed"}
    assert world.weights() == {1: 100}
