from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.core.errors import UsageError
from orchestrator.rollout.evidence.conditions import Condition
from orchestrator.rollout.evidence.explain import explain, needs_of, requests_to_clear, requests_to_detect
from orchestrator.rollout.evidence.growth import deltas, joined
from orchestrator.rollout.evidence.prometheus import filled, sample
from orchestrator.rollout.evidence.rows import Counts, Delta, row_from_json
from orchestrator.rollout.evidence.spec import AnalysisSpec, KillSpec, MetricSpec
from orchestrator.rollout.kills import reason_to_kill
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_steps import Analysis, Pause, SetWeight


def arm(generation: int, requests: int, errors: int = 0, weight: int = 5, traffic: str = "weighted") -> dict[str, Any]:
    return {
        "generation": generation, "traffic": traffic, "weight": weight, "requests": requests,
        "errors": {"execution_failed": errors} if errors else {}, "compute": {"1": {"140": requests - errors}},
    }  # fmt: skip


def answer(*arms: dict[str, Any], boot: str = "a", **more: object) -> dict[str, Any]:
    return {"routers": [{"boot": boot, "version": 1, "arms": list(arms), "pairs": None, "classes": {}, **more}]}


def test_growth_between_two_looks_by_arm() -> None:
    before = answer(arm(3, 100), arm(4, 5))
    now = answer(arm(3, 190, 2), arm(4, 10, 1), arm(3, 50, weight=25), arm(2, 7))
    found = deltas(before, now, stable=3, canary=4, t=9.0)
    assert [(d.weight, d.canary.requests, d.canary.errors, d.stable.requests, d.stable.errors) for d in found] == [
        (5, 5, 1, 90, 2),
        (25, 0, 0, 50, 0),
    ]
    assert found[0].canary.compute == {"1": {"140": 4}}
    assert deltas(now, now, 3, 4, 10.0) == []
    assert [row_from_json(json.loads(json.dumps(d.to_json()))) for d in found] == found


def test_another_life_of_a_router_counts_from_zero() -> None:
    found = deltas(answer(arm(3, 100), arm(4, 5)), answer(arm(3, 8), arm(4, 2), boot="b"), 3, 4, 1.0)
    assert [(d.boot, d.canary.requests, d.stable.requests) for d in found] == [("b", 2, 8)]
    again = deltas(answer(arm(3, 100), arm(4, 5)), answer(arm(3, 8), arm(4, 2)), 3, 4, 1.0)
    assert [(d.canary.requests, d.stable.requests) for d in again] == [(2, 8)], "counts that shrank began anew"


def test_the_first_look_leaves_out_what_stable_did_for_another_rollout() -> None:
    found = deltas(None, answer(arm(3, 100), arm(4, 5)), 3, 4, 1.0)
    assert [(d.canary.requests, d.stable.requests) for d in found] == [(5, 0)]


def test_pairs_classes_and_failures_go_with_the_copies() -> None:
    pairs = {"stable": 3, "canary": 4, "n": 10, "agree": 9, "max_abs": 0.5}
    now = answer(
        arm(4, 5, traffic="mirror", weight=0),
        pairs=pairs,
        failures_in_row={"4": 3},
        classes={"3": {"0": 2}, "4": {"1": 4}},
    )
    (found,) = deltas(answer(pairs=pairs | {"n": 4, "agree": 4}), now, 3, 4, 1.0)
    assert found.pairs is not None
    assert (found.pairs["n"], found.pairs["agree"], found.pairs["max_abs"]) == (6, 5, 0.5)
    assert (found.traffic, found.failures_in_row) == ("mirror", 3)
    assert found.classes == {"stable": {"0": 2}, "canary": {"1": 4}}
    assert deltas(None, answer(pairs=pairs | {"canary": 9}), 3, 4, 1.0) == []


@pytest.mark.parametrize("text", ["", "result", "open('x')", "result.x > 1", "result >", "1 + True > 0", "[1] > 0", "result[1] > 0", "x > 1",
                                  "result > 'a'", "(" * 90 + "1>0" + ")" * 90 + "(", "not " * 50 + "result > 1", "result ** 2 > 1"])  # fmt: skip
def test_conditions_outside_the_language_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Condition(text)


def test_conditions() -> None:
    assert Condition("result[0] >= 0.95 && !(isNaN(result) || isInf(result))").holds(0.96)
    assert not Condition("0.9 <= result <= 1.1").holds(1.2)
    assert Condition("result != 3 and result / 0 != 1").holds(2)
    assert (
        filled("up{e='{{endpoint}}',g='{{canary}}'} {{x}}", {"endpoint": "d", "canary": 4}) == "up{e='d',g='4'} {{x}}"
    )


def test_what_a_strategy_takes() -> None:
    error_rate = AnalysisSpec(metrics=(MetricSpec(name="error_rate"),))
    steps = (SetWeight(5), Pause(10.0, 300), Analysis(error_rate))
    told = explain(Strategy(kind="canary", steps=steps), rps=100.0)
    (need,) = told.steps[2].needs
    assert need.detect_median is not None
    assert need.detect_p90 is not None
    assert need.detect_median < need.detect_p90
    assert 300 < need.clear < 500
    assert told.earliest_end_s == pytest.approx(300 / 5 + need.clear / 5)
    assert explain(Strategy(kind="canary", steps=steps)).earliest_end_s is None
    json.dumps(told.to_json(), allow_nan=False)


def test_small_weights_find_more_with_fewer_requests_of_the_canary() -> None:
    small, large = requests_to_detect(5, 0.01, 3.0)[0], requests_to_detect(50, 0.01, 3.0)[0]
    assert small is not None
    assert large is not None
    assert small < large
    assert requests_to_detect(0, 0.01, 3.0) == (None, None)
    assert requests_to_clear(0.001, 3.0) > 5 * requests_to_clear(0.01, 3.0)
    assert len(needs_of(AnalysisSpec(metrics=(MetricSpec(name="latency"), MetricSpec(name="parity"))), 5, 0.01)) == 4


def test_a_router_that_was_silent_for_a_look_is_not_counted_twice() -> None:
    one, other = answer(arm(4, 5), boot="a"), answer(arm(4, 7, 3), boot="b")
    both = {"routers": [*one["routers"], *other["routers"]]}
    kept = joined(joined(both, one), answer(arm(4, 6), boot="a"))
    assert [router["boot"] for router in kept["routers"]] == ["b", "a"]
    found = deltas(
        kept, {"routers": [*answer(arm(4, 6))["routers"], *answer(arm(4, 9, 3), boot="b")["routers"]]}, 3, 4, 9.0
    )
    assert [(d.boot, d.canary.requests, d.canary.errors) for d in found] == [("b", 2, 0)]


def test_routers_that_never_come_back_are_forgotten() -> None:
    kept: dict[str, Any] = {"routers": []}
    for number in range(50):
        kept = joined(kept, answer(arm(4, 1), boot=f"r{number}"))
    assert len(kept["routers"]) <= 17
    assert kept["routers"][-1]["boot"] == "r49"


@pytest.mark.parametrize("address", ["http://[::1", "http://a\x00b"])
def test_an_address_that_is_none_is_a_row_as_well(address: str) -> None:
    assert "cannot ask" in sample("mine", address, "up", 0.2, 1.0).error


def test_slow_requests_that_name_a_version_reach_no_ceiling() -> None:
    slow = {"1": {"140": 1}}
    spec = KillSpec(latency_ceiling_s=0.001)
    for traffic, kills in (("version", False), ("weighted", True)):
        counts = Counts(requests=99, total={"300": 99}, compute=slow)
        row = Delta(t=1.0, boot="a", traffic=traffic, weight=5, canary=counts, stable=Counts(), failures_in_row=0)
        assert bool(reason_to_kill(spec, [(1, row)], 0)) is kills
