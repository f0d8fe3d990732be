"""A recipe's `rollout:` block becomes a strategy, whole and storable; a pool may demand more of it, never less."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.core.errors import UsageError
from orchestrator.environment.rollout import DEFAULT_MARGINS, DEFAULT_MIN_SAMPLES, RolloutPolicy
from orchestrator.recipe.metric_names import METRIC_NAMES
from orchestrator.recipe.rollout import Rollout
from orchestrator.rollout.evidence.spec import DEFAULT_MARGIN, METRICS, QUANTILES, AnalysisSpec, MetricSpec
from orchestrator.rollout.strategy import (
    Analysis,
    HeaderMatch,
    Pause,
    SetHeaderRoute,
    SetMirror,
    SetWeight,
    Strategy,
    resolve,
    step_from_json,
)
from orchestrator.rollout.strategy_text import strategy_text

CANARY = {
    "steps": [
        {"set_mirror": {"percent": 100}},
        {"analysis": {"metrics": ["parity"], "min_samples": 200}},
        {"set_header_route": {"match": [{"header": "X-Canary", "regex": "on|1"}]}},
        {"set_weight": 10},
        {"pause": {"duration": "10s", "min_requests": 300}},
        {"set_header_route": {}},
        {"pause": {}},
    ],
    "sticky": {"header": "X-Session-Id"},
    "analysis": {
        "metrics": [
            "error_rate",
            {"name": "latency", "margin": 0.02, "quantiles": [0.5, 0.99]},
            {
                "name": "mine",
                "prometheus": {"address": "http://metrics:9090", "query": 'up{pool="{{pool}}"}'},
                "success_condition": "result >= 0.95",
                "interval": "5s",
            },
        ],
        "starting_step": 2,
        "interval": "500ms",
    },
    "kill": {"failures_in_row": None, "latency_ceiling": "500ms"},
    "on_inconclusive": {"extend": 5, "then": "rollback"},
}


def rollout(**more: object) -> Rollout:
    return Rollout.model_validate({"endpoint": "digits", "pool": "edge", **more})


def test_a_canary_is_resolved_with_every_default() -> None:
    made = resolve(rollout(canary=CANARY, probe={"rate": 20}, promote_from={"alias": "ascend"}, approvals=2))
    assert [step.kind for step in made.steps] == [
        "set_mirror",
        "analysis",
        "set_header_route",
        "set_weight",
        "pause",
        "set_header_route",
        "pause",
    ]
    assert made.steps[0] == SetMirror(100)
    assert made.steps[1] == Analysis(AnalysisSpec(metrics=(MetricSpec(name="parity"),), min_samples=200))
    assert made.steps[2:4] == (SetHeaderRoute((HeaderMatch("x-canary", "regex", "on|1"),)), SetWeight(10))
    assert made.steps[4:] == (Pause(10.0, 300), SetHeaderRoute(), Pause())
    assert isinstance(made.steps[6], Pause)
    assert made.steps[6].for_a_person
    assert (made.sticky, made.probe_rate, made.promote_from, made.approvals) == ("x-session-id", 20, "ascend", 2)
    assert (made.extend, made.then, made.on_failure, made.keep) == (5, "rollback", "rollback", 2)
    assert (made.kill.failures_in_row, made.kill.restarts, made.kill.latency_ceiling_s) == (None, 3, 0.5)
    assert made.analysis is not None
    assert (made.analysis.starting_step, made.analysis.interval_s, made.analysis.alpha) == (2, 0.5, 0.05)
    _, latency, mine = made.analysis.metrics
    assert (latency.margin, latency.quantiles) == (0.02, (0.5, 0.99))
    assert mine.prometheus is not None
    assert (mine.interval_s, mine.success_condition, mine.failure_condition) == (5.0, "result >= 0.95", "")


def test_a_strategy_survives_its_stored_form() -> None:
    for made in (resolve(rollout(canary=CANARY, approvals=1)), resolve(rollout(blue_green={})), resolve(None)):
        again = Strategy.from_json(json.loads(json.dumps(made.to_json())))
        assert again == made
        assert again.digest == made.digest
    assert resolve(rollout(canary=CANARY)).digest != resolve(rollout(canary=CANARY, keep=3)).digest
    assert Strategy.from_json({}) == Strategy()


@pytest.mark.parametrize("row", [{}, {"pause": {}, "set_weight": 1}, {"wait": {}}, {"pause": 3}])
def test_a_row_that_is_no_step_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a step"):
        step_from_json(row)


def test_blue_green_and_direct_are_steps_too() -> None:
    assert resolve(rollout()).steps == ()
    assert resolve(rollout(direct={})).kind == "direct"
    made = resolve(
        rollout(
            blue_green={
                "preview": {"match": [{"header": "x-preview", "exact": "1"}]},
                "pre_promotion_analysis": {"metrics": ["parity"]},
                "post_promotion_analysis": {"metrics": ["error_rate"]},
                "auto_promote": False,
                "scale_down_delay": "2m",
            }
        )
    )
    assert [step.kind for step in made.steps] == [
        "set_header_route",
        "set_mirror",
        "analysis",
        "set_mirror",
        "pause",
        "set_weight",
        "analysis",
    ]
    assert (made.steps[1], made.steps[3]) == (SetMirror(100), SetMirror(0))  # parity needs copies
    assert (made.steps[5], made.scale_down_delay_s) == (SetWeight(100), 120.0)
    assert resolve(rollout(blue_green={})).steps == (SetWeight(100),)


def test_a_strategy_is_told_in_one_line() -> None:
    assert strategy_text(resolve(rollout(canary=CANARY, approvals=2))) == (
        "canary: mirror 100 % → analysis (parity) → route x-canary ~ on|1 → 10 % → pause 10s and 300 requests → "
        "no header route → pause for a person → live; beside it error_rate, latency, mine; 2 approvals"
    )


POLICY = {
    "min_steps": 3,
    "approvals": 2,
    "require": ["error_rate", "parity"],
    "max_first_weight": 10,
    "max_margins": {"latency": 0.02},
    "min_samples": 100,
}


def test_a_pool_that_demands_no_more_than_the_recipe_has_changes_only_the_approvals() -> None:
    policy = RolloutPolicy.model_validate(POLICY)
    assert resolve(rollout(canary=CANARY), policy).approvals == 2
    assert resolve(rollout(canary=CANARY, approvals=3), policy).approvals == 3


@pytest.mark.parametrize(
    ("block", "demand", "place", "said"),
    [
        ({}, {"min_steps": 2}, "rollout", "at least 2 steps (min_steps), and direct has 0"),
        ({"blue_green": {}}, {"min_steps": 2}, "rollout.blue_green", "and blue_green has 1"),
        ({"blue_green": {}}, {"max_first_weight": 20}, "rollout.blue_green", "at most 20 % first"),
        ({"canary": CANARY}, {"max_first_weight": 5}, "rollout.canary.steps.3.set_weight", "not 10 %"),
        ({"canary": CANARY}, {"require": ["nonfinite"]}, "rollout.canary", "that nonfinite judges"),
        (
            {"canary": CANARY},
            {"max_margins": {"latency": 0.01}},
            "rollout.canary.analysis.metrics.1",
            "at most 0.01 for latency (max_margins), not 0.02",
        ),
        (
            {"canary": CANARY},
            {"max_margins": {"parity": 0.001}},
            "rollout.canary.steps.1.analysis.metrics.0",
            "not 0.005",
        ),
        ({"canary": CANARY}, {"min_samples": 150}, "rollout.canary.analysis.metrics.0", "error_rate has 100"),
    ],
)
def test_what_a_pool_demands_and_a_recipe_lacks_is_named(
    block: dict[str, object], demand: dict[str, object], place: str, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(rollout(**block), RolloutPolicy.model_validate(demand))
    assert caught.value.place == place
    assert said in caught.value.message


def test_a_dry_run_does_not_meet_a_demand() -> None:
    canary = {"steps": [{"set_weight": 5}], "analysis": {"metrics": [{"name": "parity", "dry_run": True}]}}
    with pytest.raises(UsageError, match="parity judges every rollout"):
        resolve(rollout(canary=canary), RolloutPolicy.model_validate({"require": ["parity"]}))


def test_without_a_recipe_the_fix_is_to_name_one() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(None, RolloutPolicy.model_validate({"min_steps": 1}))
    assert "--recipe" in caught.value.hint
    assert resolve(None, RolloutPolicy.model_validate({"approvals": 1})).approvals == 1


def test_names_and_defaults_of_metrics_are_those_of_the_evidence() -> None:
    assert METRIC_NAMES == METRICS
    assert dict(DEFAULT_MARGIN) == DEFAULT_MARGINS
    assert AnalysisSpec(metrics=()).min_samples == DEFAULT_MIN_SAMPLES
    from orchestrator.recipe.metrics import QUANTILES as NAMED

    assert NAMED == QUANTILES


def test_recipes_are_checked_without_heavy_libraries(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, orchestrator.rollout.strategy_text; "
        "bad = {'numpy', 'scipy', 'torch', 'ray', 'mlflow', 'onnx', 'sqlalchemy'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
