from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.ledger_samples import digest
from support.rollout_world import ENDPOINT, World, error_rate, strategy

from orchestrator.core.errors import Conflict, GateError, StoreError, Unreachable, UsageError, Waiting
from orchestrator.ledger import Generation, Ledger, Owner
from orchestrator.rollout.evidence.rows import Sample
from orchestrator.rollout.kills import restarts_beyond, restarts_of
from orchestrator.rollout.lead import drive
from orchestrator.rollout.rollback import rollback
from orchestrator.rollout.stage import Pace

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
    assert next(weights.get(2) for weights in seen if 2 in weights) == 0
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
    with pytest.raises(GateError, match="aborted by bob"):
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


def test_an_analysis_that_passes_lets_the_rollout_go_on(world: World) -> None:
    world.clock.each = lambda: world.site.traffic(100)
    how = strategy([{"set_weight": 50}, {"analysis": error_rate()}], analysis=error_rate())
    done = world.deploy("2", how)
    assert done.rollout is not None
    assert done.rollout.verdict is not None
    assert done.rollout.verdict["state"] == "passed"
    assert world.states() == {1: "warm", 2: "live"}
    rows = world.ledger.rollouts.evidence(ENDPOINT, 2)
    counted = world.site.evidence(ENDPOINT)["routers"][0]["arms"]
    assert sum(row.body["canary"].get("requests", 0) for row in rows) <= sum(
        arm["requests"] for arm in counted if arm["generation"] == 2
    )
    assert sum(row.body["canary"].get("requests", 0) for row in rows) >= 50


def test_a_bad_canary_is_taken_back_with_its_verdict(world: World) -> None:
    world.clock.each = lambda: world.site.traffic(100, canary_errors=20)
    how = strategy([{"set_weight": 50}, {"pause": {"duration_s": 60}}], analysis=error_rate())
    with pytest.raises(GateError, match="was taken back") as caught:
        world.deploy("2", how)
    assert caught.value.exit_code == 1
    assert world.states() == {1: "live", 2: "failed"}
    assert world.weights() == {1: 100}
    row = world.row()
    assert (str(row.state), row.weight) == ("aborted", 0)
    assert row.verdict is not None
    assert row.verdict["state"] == "failed"
    assert row.error is not None
    assert (row.error["kind"], row.error["automatic"]) == ("analysis", True)


def test_failures_in_a_row_end_it_at_once(world: World) -> None:
    world.clock.each = lambda: world.site.traffic(10, canary_errors=100)
    with pytest.raises(GateError, match="failed in a row"):
        world.deploy("2", strategy([{"set_weight": 50}, {"pause": {"duration_s": 600}}], kill={"failures_in_row": 20}))
    assert world.weights() == {1: 100}


def test_a_crash_loop_ends_it(world: World) -> None:
    def crash() -> None:
        if world.clock.sleeps == 20:
            canary = world.ledger.generations.list(ENDPOINT)[-1]
            world.site.crashes[canary.bundle] = 7

    world.clock.each = crash
    with pytest.raises(GateError, match="started again 7 times"):
        world.deploy("2", strategy([{"set_weight": 50}, {"pause": {"duration_s": 600}}]))


def test_replicas_of_both_that_die_of_the_same_requests_end_nothing(world: World) -> None:
    def crash() -> None:
        if world.clock.sleeps == 20:
            world.site.restarts = 9

    world.clock.each = crash
    world.deploy("2", strategy([{"set_weight": 50}, {"pause": {"duration_s": 600}}]))
    assert world.clock.sleeps > 20, "they died"
    assert world.weights() == {1: 0, 2: 100}


def _counted(bundle: str, *restarts: int) -> dict[str, Any]:
    rows = [{"endpoint": "digits", "bundle": bundle, "stage": "model", "restarts": count} for count in restarts]
    return {"agents": [{"pool": "edge", "slot": slot, "replicas": [row]} for slot, row in enumerate(rows)]}


@pytest.mark.parametrize(
    ("canary", "stable", "excess"),
    [
        ([5, 3], [1, 1], 3),  # the slot that had none before
        ([9, 0], [5, 1], 0),  # as often as stable's
        ([9, 0], [3, 1], 2),
        ([2, 0], [1, 1], 2),  # that agent was restarted: it counts from zero
        ([5, 0], [9, 9], 0),
        ([], [], 0),
    ],
)
def test_restarts_count_beyond_those_of_stables_replicas(canary: list[int], stable: list[int], excess: int) -> None:
    one, other = (cast("Generation", SimpleNamespace(endpoint="digits", bundle=b, variant="")) for b in "ab")
    begun = {"canary": restarts_of(_counted("a", 5, 0), one), "stable": restarts_of(_counted("b", 1, 1), other)}
    assert begun["canary"] == {"edge-0.model": 5, "edge-1.model": 0}
    now = restarts_of(_counted("a", *canary), one), restarts_of(_counted("b", *stable), other)
    assert restarts_beyond(begun, *now) == excess
    assert restarts_beyond(4, {"edge-0.model": 6}, {"edge-0.model": 9}) == 2, "a rollout that an older program began"
    assert restarts_of(_counted("b", 3), one) == restarts_of(_counted("a", 3), None) == {}


def test_answers_beyond_the_ceiling_end_it(world: World) -> None:
    world.clock.each = lambda: world.site.traffic(100)
    kill = {"latency_ceiling_s": 0.001}
    with pytest.raises(GateError, match=r"last \d+ answers took over 0.00\d+ s"):
        world.deploy("2", strategy([{"set_weight": 50}, {"pause": {"duration_s": 600}}], kill=kill))


def test_too_little_traffic_is_extended_then_waits_for_a_person(world: World) -> None:
    how = strategy([{"set_weight": 50}, {"analysis": error_rate()}], extend=2, progress_deadline_s=10.0)
    began = world.clock.t
    with pytest.raises(Waiting, match="the analysis has not passed yet") as caught:
        world.deploy("2", how)
    assert world.clock.t - began >= 30
    assert "rollout resume" in caught.value.hint
    row = world.row()
    assert (str(row.state), row.weight, row.waiting and row.waiting["kind"]) == ("paused", 50, "inconclusive")
    world.clock.each = lambda: world.site.traffic(100)
    world.ledger.rollouts.ask(ENDPOINT, "resume", actor="bob")
    assert world.deploy("2", how).generation == 2


def test_inconclusive_can_mean_rollback(world: World) -> None:
    steps = [{"set_weight": 50}, {"pause": {"min_requests": 10}}]
    with pytest.raises(GateError, match="inconclusive"):
        world.deploy("2", strategy(steps, extend=0, then="rollback", progress_deadline_s=5.0))
    assert world.states() == {1: "live", 2: "failed"}


def test_on_failure_pause_leaves_the_weights_and_a_person_may_go_on(world: World) -> None:
    bad = {"canary_errors": 20}
    world.clock.each = lambda: world.site.traffic(100, **bad)
    steps = [{"set_weight": 50}, {"analysis": error_rate()}]
    how = strategy(steps, on_failure="pause")
    with pytest.raises(Waiting, match="the analysis failed"):
        world.deploy("2", how)
    assert world.weights() == {1: 50, 2: 50}
    with pytest.raises(Waiting):
        world.deploy("2", how)
    bad.clear()
    world.ledger.rollouts.ask(ENDPOINT, "resume", actor="bob")
    assert world.deploy("2", how).generation == 2


def approve(world: World, who: str, decision: str = "approve", bundle: str = "2") -> None:
    said = {"identity": who, "decision": decision, "step": world.row().step, "bundle": digest(bundle), "reason": "r"}
    world.ledger.rollouts.decide(ENDPOINT, 2, said, actor=who)


def test_approvals_are_of_others_and_each_counts_once(world: World) -> None:
    how = strategy([{"set_weight": 50}], approvals=2)
    with pytest.raises(Waiting, match="2 more approvals of others than ada"):
        world.deploy("2", how)
    assert world.weights() == {1: 50, 2: 50}
    for who in ("ada", "bob", "bob"):
        approve(world, who)
    with pytest.raises(Waiting):
        world.deploy("2", how)
    approve(world, "cleo", bundle="3")
    world.ledger.rollouts.ask(ENDPOINT, "resume", actor="ada")
    with pytest.raises(Waiting):
        world.deploy("2", how)
    approve(world, "dan")
    assert world.deploy("2", how).generation == 2


def test_skipping_the_rest_skips_no_approval(world: World) -> None:
    how = strategy([{"set_weight": 20}, {"pause": {}}, {"set_weight": 40}, {"pause": {}}], approvals=1)
    with pytest.raises(Waiting):
        world.deploy("2", how)
    world.ledger.rollouts.ask(ENDPOINT, "promote", actor="ada")
    with pytest.raises(Waiting, match="1 more approval of others"):
        world.deploy("2", how)
    assert world.weights() == {1: 80, 2: 20}
    approve(world, "bob")
    assert world.deploy("2", how).generation == 2


def test_a_rejection_takes_the_canary_back(world: World) -> None:
    how = strategy([{"set_weight": 50}], approvals=1)
    with pytest.raises(Waiting):
        world.deploy("2", how)
    approve(world, "bob", "reject")
    with pytest.raises(GateError, match="rejected by bob: r"):
        world.deploy("2", how)
    assert world.states() == {1: "live", 2: "failed"}


def test_all_requests_need_the_approvals_first(world: World) -> None:
    steps = [{"set_weight": 100}, {"analysis": error_rate()}]
    how = strategy(steps, kind="blue_green", approvals=1)
    with pytest.raises(Waiting, match="1 more approval"):
        world.deploy("2", how)
    assert world.weights() == {1: 100, 2: 0}


def test_blue_green_that_fails_after_the_switch_goes_back(world: World) -> None:
    world.clock.each = lambda: world.site.traffic(100, canary_errors=30)
    with pytest.raises(GateError):
        world.deploy("2", strategy([{"set_weight": 100}, {"analysis": error_rate()}], kind="blue_green"))
    seen = [{g.generation: g.weight for g in t.endpoints[ENDPOINT].generations} for t in world.site.tables()]
    assert {1: 0, 2: 100} in seen
    assert world.weights() == {1: 100}


def test_a_bundle_that_is_taken_back_again_and_again_is_held(world: World) -> None:
    how = strategy(
        [{"set_weight": 50}, {"pause": {"min_requests": 1}}], extend=0, then="rollback", progress_deadline_s=1.0
    )
    for _ in range(3):
        with pytest.raises(GateError):
            world.deploy("2", how)
    with pytest.raises(Waiting, match="was taken back 3 times"):
        world.deploy("2", how)
    assert world.weights()[5] == 0
    assert world.states()[5] == "staged"


def test_the_first_deploy_waits_only_for_approvals(tmp_path: Path) -> None:
    world = World(tmp_path)
    how = strategy([{"set_weight": 50}, {"pause": {}}], analysis=error_rate(), approvals=1)
    with pytest.raises(Waiting, match="1 more approval"):
        world.deploy("1", how)
    assert world.weights() == {1: 0}
    said = {"identity": "bob", "decision": "approve", "step": 2, "bundle": digest("1"), "reason": ""}
    world.ledger.rollouts.decide(ENDPOINT, 1, said, actor="bob")
    assert world.deploy("1", how).generation == 1
    assert world.weights() == {1: 100}
    world.ledger.close()


def test_somebody_elses_rollout_is_not_swept_away(world: World) -> None:
    with pytest.raises(Waiting):
        world.deploy("2", strategy([{"set_weight": 20}, {"pause": {}}]))
    with pytest.raises(Conflict, match="generation 2 of 'digits' is being rolled out by ada") as caught:
        world.deploy("3")
    assert "rollout abort" in caught.value.hint
    assert world.weights() == {1: 80, 2: 20}


def test_a_router_that_does_not_answer_decides_nothing(world: World) -> None:
    def fall() -> None:
        if world.clock.sleeps == 5:
            world.site.down = True

    world.clock.each = fall
    how = strategy([{"set_weight": 50}, {"pause": {"duration_s": 20}}], progress_deadline_s=60.0)
    with pytest.raises(Unreachable):
        world.deploy("2", how)
    assert str(world.row().state) == "progressing"
    world.site.down = False
    assert world.deploy("2", how).generation == 2


def test_headers_mirror_and_sticky_stand_in_the_table(world: World) -> None:
    route = {"match": [{"header": "x-canary", "exact": "1"}]}
    parity = {"metrics": [{"name": "parity", "rtol": 0.01}]}
    steps = [{"set_header_route": route}, {"set_mirror": {"percent": 30}}, {"pause": {}}]
    how = strategy(steps, sticky="x-user", analysis=parity)
    with pytest.raises(Waiting):
        world.deploy("2", how)
    split = world.site.table().endpoints[ENDPOINT].split
    assert split is not None
    assert (split.stable, split.canary, split.mirror, split.sticky, split.rtol) == (1, 2, 30, "x-user", 0.01)
    assert [(h.name, h.how, h.value) for h in split.headers] == [("x-canary", "exact", "1")]
    world.ledger.rollouts.ask(ENDPOINT, "promote", actor="ada")
    world.deploy("2", how)
    assert world.site.table().endpoints[ENDPOINT].split is None


def test_another_living_controller_is_followed(world: World) -> None:
    how = strategy([{"set_weight": 50}, {"pause": {"duration_s": 30}}])
    followed = []

    def second() -> None:
        if not followed:
            followed.append(True)
            with Ledger.open(world.url) as own:
                far = replace(Owner.here("second"), machine="elsewhere")
                row = own.rollouts.active(ENDPOINT)
                assert row is not None
                with pytest.raises(Conflict, match="is held by"):
                    own.leases.acquire(f"endpoint/{ENDPOINT}", far)
                sleeps: list[float] = []

                def sleep(seconds: float) -> None:
                    sleeps.append(seconds)
                    if len(sleeps) > 3:
                        raise KeyboardInterrupt

                with pytest.raises(KeyboardInterrupt):
                    drive(own, world.site, ENDPOINT, far, pace=Pace(sleep=sleep))

    world.clock.each = second
    assert world.deploy("2", how).generation == 2
    assert followed
    assert drive(world.ledger, world.site, ENDPOINT, Owner.here("late")).generation == 2


@pytest.mark.parametrize(("verb", "end"), [("pause", "paused"), ("abort", "aborted"), ("promote", "succeeded")])
def test_a_controller_that_waits_hears_an_operator(world: World, verb: Any, end: str) -> None:
    def ask() -> None:
        if world.clock.sleeps == 10:
            world.ledger.rollouts.ask(ENDPOINT, verb, actor="bob")

    world.clock.each = ask
    how = strategy([{"set_weight": 50}, {"pause": {"duration_s": 300}}])
    with contextlib.suppress(Waiting, GateError):
        world.deploy("2", how)
    row = world.row()
    assert (str(row.state), row.intent) == (end, "")
    assert world.clock.t - 1_000_000 < 10
    if verb == "pause":  # the pause does not use up the step's time
        world.clock.t += 10_000
        world.ledger.rollouts.ask(ENDPOINT, "resume", actor="bob")
        began = world.clock.t
        world.deploy("2", how)
        assert world.clock.t - began > 290


def test_a_custom_metric_is_asked_at_its_interval_and_decides(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, str]] = []

    def answer(metric: str, address: str, text: str, timeout_s: float, t: float) -> Sample:
        asked.append((t, text))
        return Sample(t=t, metric=metric, value=0.99 if len(asked) < 4 else 0.1)

    monkeypatch.setattr("orchestrator.rollout.evidence.prometheus.sample", answer)
    metric = {
        "name": "ours",
        "prometheus": {"address": "http://127.0.0.1:9", "query": "ok{v='{{canary}}'}"},
        "interval_s": 5.0,
        "failure_condition": "result < 0.9",
    }
    steps = [{"set_weight": 50}, {"pause": {"duration_s": 60.0}}]
    with pytest.raises(GateError, match=r"ours: last 0\.1"):
        world.deploy("2", strategy(steps, analysis={"metrics": [metric]}))
    assert {text for _, text in asked} == {"ok{v='2'}"}
    times = [t for t, _ in asked]
    assert all(later - earlier >= 5 for earlier, later in pairwise(times))


def test_rollback_goes_further_back_and_never_to_what_was_rolled_back_from(world: World) -> None:
    for letter in "23":
        world.deploy(letter)
    assert rollback(world.ledger, world.site, ENDPOINT, actor="bob").to == 2
    assert rollback(world.ledger, world.site, ENDPOINT, actor="bob").to == 1
    with pytest.raises(UsageError, match="no other build served at endpoint 'digits' before generation 1, whose"):
        rollback(world.ledger, world.site, ENDPOINT, actor="bob")
    assert rollback(world.ledger, world.site, ENDPOINT, 3, actor="bob").to == 3
    with pytest.raises(UsageError, match="generation 77 of 'digits' has never served"):
        rollback(world.ledger, world.site, ENDPOINT, 77, actor="bob")


def test_rollback_compares_and_repeats(world: World) -> None:
    world.deploy("2")
    with pytest.raises(Conflict, match="is at generation 2, not 1"):
        rollback(world.ledger, world.site, ENDPOINT, expect=1, actor="bob")
    first = rollback(world.ledger, world.site, ENDPOINT, expect=2, actor="bob")
    again = rollback(world.ledger, world.site, ENDPOINT, expect=2, actor="bob")
    assert (first.generation, first.changed, again.generation, again.changed) == (3, True, 3, False)
    assert rollback(world.ledger, world.site, ENDPOINT, 1, actor="bob").changed is False


def test_a_build_whose_files_are_gone_or_wrong_leaves_the_live_one_alone(world: World) -> None:
    for letter in "23":
        world.deploy(letter)
    world.site.spoil[digest("1")] = lambda answer: replace(answer, device="another")
    with pytest.raises(GateError):
        rollback(world.ledger, world.site, ENDPOINT, 1, actor="bob")
    assert world.states() == {1: "retired", 2: "warm", 3: "live", 4: "failed"}
    (world.folder / "bundles" / "1").rename(world.folder / "elsewhere")
    with pytest.raises(StoreError, match="files of generation 1 of 'digits' are gone"):
        rollback(world.ledger, world.site, ENDPOINT, 1, actor="bob")
    assert world.weights() == {2: 0, 3: 100}
