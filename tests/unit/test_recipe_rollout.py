"""The `rollout:` block of a recipe: Argo's words in snake_case, strict, every slip with its line and column."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from orchestrator.core.errors import PlanError, RecipeError
from orchestrator.environment import check_against, load_environment
from orchestrator.recipe import Recipe, load_recipe, render_problems
from orchestrator.recipe.schema import recipe_schema

HEAD = "recipe: 1\nname: x\nparams: {weight: 25, wait: 5s}\nsource: {onnx: m.onnx}\nrollout:\n  endpoint: digits\n  pool: edge\n"


def recipe(folder: Path, block: str) -> Path:
    (folder / "m.onnx").touch()
    (folder / "recipe.yaml").write_text(HEAD + block)
    return folder / "recipe.yaml"


def problems(folder: Path, block: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(folder, block))
    return render_problems(caught.value).replace(f"{folder}/", "")


def test_every_key_is_taken_and_survives_a_dump(tmp_path: Path) -> None:
    made = load_recipe(Path(__file__).parents[1] / "fixtures" / "rollout-every-key" / "recipe.yaml").recipe
    assert made.rollout is not None
    assert made.rollout.canary is not None
    assert [step.key for step in made.rollout.canary.steps][:3] == ["set_mirror", "analysis", "set_header_route"]
    assert Recipe.model_validate(json.loads(json.dumps(made.model_dump(mode="json")))) == made


@pytest.mark.parametrize(
    ("steps", "fits"),
    [
        ([{"set_weight": 10}, {"pause": {}}, {"analysis": {"metrics": ["parity", {"name": "latency"}]}}], True),
        ([{"set_weight": "${{ params.weight }}"}], True),
        ([{"set_weight": 10, "pause": {}}], False),
        ([{}], False),
        ([{"set_weight": 101}], False),
        ([{"analysis": {"metrics": ["speed"]}}], False),
        ([{"set_header_route": {"match": [{"header": "x", "exact": "1", "prefix": "2"}]}}], False),
    ],
)
def test_editors_see_what_a_step_may_be(steps: list[object], fits: bool) -> None:
    value = {"recipe": 1, "name": "x", "rollout": {"endpoint": "e", "pool": "p", "canary": {"steps": steps}}}
    assert jsonschema.Draft202012Validator(recipe_schema()).is_valid(value) is fits


def test_parameters_keep_their_type(tmp_path: Path) -> None:
    block = '  canary: {steps: [{set_weight: "${{ params.weight }}"}, {pause: {duration: "${{ params.wait }}"}}]}\n'
    made = load_recipe(recipe(tmp_path, block), set_=["rollout.canary.steps.0.set_weight=30"]).recipe
    assert made.rollout is not None
    assert made.rollout.canary is not None
    weight, pause = made.rollout.canary.steps
    assert weight.set_weight == 30
    assert pause.pause is not None
    assert pause.pause.duration == 5.0


def test_weights_may_go_any_way_and_need_not_reach_100(tmp_path: Path) -> None:
    block = "  canary: {steps: [{set_weight: 50}, {set_weight: 0}, {set_weight: 20}]}\n"
    assert load_recipe(recipe(tmp_path, block)).recipe.rollout is not None


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("  canary: {steps: [{set_wieght: 10}]}\n", "8:21: rollout.canary.steps.0.set_wieght: unknown field (did you mean `set_weight`?)"),
        ("  canary: {steps: [{set_weight: 1, pause: {}}]}\n", "8:20: rollout.canary.steps.0: a step has exactly one key of set_weight, set_mirror"),
        ("  canary: {steps: [{}]}\n", "here is none"),
        ("  canary: {steps: [{pause: }]}\n", "`pause` needs a mapping; `pause: {}` waits for a person"),
        ("  canary: {steps: [{set_weight: }]}\n", "`set_weight` needs a number from 0 to 100"),
        ("  canary: {steps: [{set_weight: 101}]}\n", "8:33: rollout.canary.steps.0.set_weight: must be at most 100, not 101"),
        ("  canary: {steps: [{set_weight: 2.5}]}\n", "must be a whole number, not 2.5"),
        ("  canary: {steps: [{set_mirror: {percent: -1}}]}\n", "must be at least 0, not -1"),
        ("  canary: {steps: [{pause: {duration: 10x}}]}\n", "not a duration: '10x'"),
        ("  canary: {steps: []}\n", "needs at least 1 entry"),
        ("  canary:\n", "`canary` is empty; say how, or leave it out"),
        ("  direct:\n", "write `direct: {}`"),
        ("  direct: {}\n  blue_green: {}\n", "give one of canary, blue_green, direct; there are blue_green and direct"),
        ("  on_failure: rolback\n", "did you mean `rollback`?"),
        ("  aprovals: 2\n", "did you mean `approvals`?"),
        ("  probe: {rate: 0}\n", "rollout.probe.rate"),
        ("  promote_from: {alias: a b}\n", "is not a word"),
        ("  canary: {steps: [{analysis: {metrics: [eror_rate]}}]}\n", 'there is no metric "eror_rate" (did you mean `error_rate`?); one of your own needs `prometheus`'),
        ("  canary: {steps: [{analysis: {metrics: [speed]}}]}\n", "(known: drift, error_rate, latency, nonfinite, parity, saturated, users)"),
        ("  canary: {steps: [{analysis: {metrics: parity}}]}\n", "metrics are a list: [parity]"),
        ("  canary: {steps: [{analysis: {metrics: []}}]}\n", "needs at least 1 entry"),
        ("  canary: {steps: [{analysis: {metrics: [parity, parity]}}]}\n", "the metric `parity` stands twice"),
        ("  canary: {steps: [{analysis: {metrics: [{name: parity, quantiles: [0.5]}]}}]}\n", "`quantiles` is for latency, not for parity"),
        ("  canary: {steps: [{analysis: {metrics: [{name: latency, quantiles: [0.95]}]}}]}\n", "0.95 is not one of 0.5, 0.9, 0.99"),
        ("  canary: {steps: [{analysis: {metrics: [{name: parity, failure_limit: 1}]}}]}\n", "`failure_limit` is for a metric with `prometheus`"),
        (
            "  canary: {steps: [{analysis: {metrics: [{name: mine, margin: 0.1, prometheus: {address: 'http://m:1', query: up}}]}}]}\n",
            "`margin` is not for a `prometheus` query",
        ),
        (
            "  canary: {steps: [{analysis: {metrics: [{name: latency, prometheus: {address: 'http://m:1', query: up}}]}}]}\n",
            "latency is measured by the router; give the query another name",
        ),
        ("  canary: {steps: [{set_header_route: {match: [{header: x-a}]}}]}\n", "give exactly one of `exact`, `prefix`, `regex`; there is none"),
        ("  canary: {steps: [{set_header_route: {match: [{header: 'x a', exact: b}]}}]}\n", '"x a" is no name of a header'),
        ("  canary: {steps: [{set_header_route: {match: [{header: x-a, regex: '['}]}}]}\n", "is not a regular expression"),
        ("  canary: {steps: [{set_header_route: {match: [{header: x-a, regex: '(a+)+'}]}}]}\n", "repeats a group"),
        ("  canary: {steps: [{set_weight: 1}], analysis: {metrics: [parity], starting_step: 1}}\n", "starting_step is 1, and the last step is 0"),
        ("  canary: {steps: [{set_weight: 1}], analysis: {metrics: [parity], alpha: 0.9}}\n", "must be at most 0.5, not 0.9"),
    ],
)  # fmt: skip
def test_a_slip_is_named_with_its_place(tmp_path: Path, block: str, said: str) -> None:
    assert said in problems(tmp_path, block)


def test_all_slips_come_at_once(tmp_path: Path) -> None:
    block = "  keep: 0\n  canary:\n    steps: [{set_weight: 1000}, {paus: {}}]\n    on_inconclusive: {then: stop}\n"
    lines = problems(tmp_path, block).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "recipe.yaml:8:9",
        "recipe.yaml:10:26",
        "recipe.yaml:10:34",
        "recipe.yaml:11:29",
    ]


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("  canary: {steps: [{set_weight: 5}, {analysis: {metrics: [parity]}}]}\n", "8:59: rollout.canary.steps.1.analysis.metrics.0: parity would wait for ever: it compares copies of stable's requests, and there are none at this step; add a `set_mirror`"),
        ("  canary: {steps: [{analysis: {metrics: [error_rate]}}, {set_weight: 5}]}\n", "the canary answers no requests at this step; add `probe` or a `set_weight` above it"),
        ("  canary: {steps: [{set_weight: 5}], analysis: {metrics: [users]}}\n", "it needs `sticky`"),
        ("  canary: {steps: [{set_weight: 5}], analysis: {metrics: [parity]}}\n", "there are none at any step"),
        ("  canary: {steps: [{set_mirror: {percent: 9}}, {set_mirror: {percent: 0}}, {analysis: {metrics: [parity]}}]}\n", "none at this step"),
        ("  blue_green: {pre_promotion_analysis: {metrics: [error_rate]}}\n", "no requests before the switch; add `probe` or `preview`"),
        ("  blue_green: {post_promotion_analysis: {metrics: [parity]}}\n", "there are none after the switch"),
    ],
)  # fmt: skip
def test_an_analysis_that_could_never_pass_is_refused(tmp_path: Path, block: str, said: str) -> None:
    assert said in problems(tmp_path, block)


@pytest.mark.parametrize(
    "block",
    [
        "  probe: {rate: 1}\n  canary: {steps: [{analysis: {metrics: [error_rate, latency, nonfinite]}}]}\n",
        "  canary: {steps: [{set_mirror: {percent: 9}}, {analysis: {metrics: [parity, drift, nonfinite]}}]}\n",
        "  canary: {steps: [{set_weight: 5}], sticky: {header: a}, analysis: {metrics: [users, error_rate]}}\n",
        "  canary: {steps: [{set_weight: 5}], analysis: {metrics: [error_rate, {name: parity, dry_run: true}]}}\n",
        "  blue_green: {pre_promotion_analysis: {metrics: [parity]}, post_promotion_analysis: {metrics: [latency]}}\n",
    ],
)
def test_an_analysis_that_can_pass_is_taken(tmp_path: Path, block: str) -> None:
    assert load_recipe(recipe(tmp_path, block)).recipe.rollout is not None


def test_what_the_pool_demands_is_said_at_its_place_in_the_recipe(tmp_path: Path) -> None:
    environment = tmp_path / "environment.yaml"
    environment.write_text(
        "environment: 1\nsites: {local: {kind: local}}\npools:\n  edge:\n    site: local\n    soc: Ascend310P3\n"
        "    rehearsal: true\n    rollout: {min_steps: 2, require: [parity], max_first_weight: 5}\n"
    )
    loaded = load_recipe(recipe(tmp_path, "  canary:\n    steps:\n      - set_weight: 10\n"))
    with pytest.raises(PlanError) as caught:
        check_against(loaded, load_environment(environment))
    assert render_problems(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "recipe.yaml:8:3: rollout.canary: pool `edge`: the pool demands at least 2 steps (min_steps), and canary has 1",
        "recipe.yaml:8:3: rollout.canary: pool `edge`: the pool demands that parity judges every rollout (require), and no "
        "analysis has it",
        "recipe.yaml:10:21: rollout.canary.steps.0.set_weight: pool `edge`: the pool allows at most 5 % first "
        "(max_first_weight), not 10 %",
    ]


def test_a_demand_for_an_unknown_metric_is_refused(tmp_path: Path) -> None:
    from orchestrator.core.errors import EnvironmentFileError

    environment = tmp_path / "environment.yaml"
    environment.write_text(
        "environment: 1\nsites: {local: {kind: local}}\n"
        "pools: {edge: {site: local, soc: Ascend310P3, rollout: {require: [parrity]}}}\n"
    )
    with pytest.raises(EnvironmentFileError, match="did you mean `parity`"):
        load_environment(environment)
