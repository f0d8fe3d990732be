"""Planning: order, fingerprints, reasons, gates. Pure, so no files and no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import PlanError
from orchestrator.plan.fingerprint import explain, fingerprint_of, parts_of
from orchestrator.plan.gates import Gate, judge_result
from orchestrator.plan.model import Action, Draft, Input, draft_from_json, draft_to_json
from orchestrator.plan.planner import Deployed, make_plan, order


@dataclass
class Known:
    """What is done, held in dictionaries."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    live: Deployed | None = None

    def result(self, fingerprint):
        return self.results.get(fingerprint)

    def resumable(self, fingerprint):
        return self.left.get(fingerprint)

    def previous_parts(self, step):
        return self.parts.get(step)

    def deployed(self, endpoint, pool):
        return self.live


def own(name: str, *needs: str, **spec: Any) -> Draft:
    return Draft(name, "custom", "local", spec, tuple(Input(n, n, "files") for n in needs))


def plan(drafts, known, **options):
    return make_plan(drafts, known, recipe="r", recipe_sha256="a", environment_sha256="b", **options)


def finish(known: Known, draft: Draft, inputs: dict[str, str], digest: str) -> str:
    parts = parts_of(draft, inputs)
    fingerprint = fingerprint_of(parts)
    outputs = {"files": {"digest": digest}}
    known.results[fingerprint] = {"outputs": outputs, "metrics": {}, "facts": {}, "execution": "x1"}
    known.parts[draft.name] = parts
    return fingerprint


def test_a_chain_runs_then_is_reused_whole():
    drafts, known = [own("a"), own("b", "a")], Known()
    first = plan(drafts, known)
    assert [s.action for s in first.steps] == [Action.RUN, Action.RUN_LATER]
    assert [s.reason for s in first.steps] == ["never run before", "a runs first"]
    finish(known, drafts[0], {}, "sha256:aa")
    finish(known, drafts[1], {"a": "sha256:aa"}, "sha256:bb")
    second = plan(drafts, known)
    assert second.all_reused
    assert second.step("b").outputs == {"files": "sha256:bb"}


def test_equal_output_cuts_off_early():
    """A changed first step that makes the same bytes leaves the second one reusable (settled when it is known)."""
    drafts, known = [own("a", x=1), own("b", "a")], Known()
    finish(known, drafts[0], {}, "sha256:aa")
    finish(known, drafts[1], {"a": "sha256:aa"}, "sha256:bb")
    changed = [own("a", x=2), drafts[1]]
    assert [s.action for s in plan(changed, known).steps] == [Action.RUN, Action.RUN_LATER]
    finish(known, changed[0], {}, "sha256:aa")
    assert plan(changed, known).all_reused


def test_refresh_and_resume():
    drafts, known = [own("a")], Known()
    fingerprint = finish(known, drafts[0], {}, "sha256:aa")
    assert plan(drafts, known, refresh=["a"]).steps[0].reason == "refresh asked"
    known.results.clear()
    known.left[fingerprint] = "goes on from the checkpoint of epoch 5"
    step = plan(drafts, known).steps[0]
    assert (step.action, step.reason) == (Action.RESUME, "goes on from the checkpoint of epoch 5")
    with pytest.raises(PlanError, match="--refresh z: no such step"):
        plan(drafts, known, refresh=["z"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sources": {"train.py": "2"}}, "train.py changed"),
        ({"spec": {"lr": 0.1}}, "lr 0.2 → 0.1"),
        ({"spec": {}}, "lr removed"),
        ({"data": {"digits": "v2"}}, "data digits changed"),
        ({"kind": "evaluate"}, "kind changed"),
    ],
)
def test_a_miss_names_what_changed(change, reason):
    base = Draft("s", "custom", "local", {"lr": 0.2}, sources={"train.py": "1"}, data={"digits": "v1"})
    old, new = parts_of(base, {}), parts_of(replace(base, **change), {})
    assert reason in explain(old, new)
    assert fingerprint_of(old) != fingerprint_of(new)


def test_thresholds_retries_and_timeouts_are_not_in_the_fingerprint():
    def train(**spec):
        return fingerprint_of(parts_of(Draft("t", "train", "local", {"workers": 2, **spec}), {}))

    assert train(retries={"infra": 1}, timeout_s=1, resources={"gpu": 0}) == train(retries={"infra": 9})
    evaluate = Draft("e", "evaluate", "local", {"gates": ["a >= 1"]})
    other = replace(evaluate, spec={"gates": ["a >= 2"]})
    assert parts_of(evaluate, {}) == parts_of(other, {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), JSON, max_size=4))
def test_a_draft_that_travelled_has_the_same_fingerprint(spec):
    draft = Draft("s", "custom", "local", spec, (Input("a", "b", "files"),), ("c",), {"f.py": "1"}, {"d": "2"})
    back = draft_from_json(draft_to_json(draft))
    assert fingerprint_of(parts_of(back, {"a": "x"})) == fingerprint_of(parts_of(draft, {"a": "x"}))


@given(st.permutations(["a", "b", "c", "d", "e"]), st.data())
def test_order_puts_needs_first(names, data):
    drafts = [
        own(n, *data.draw(st.lists(st.sampled_from(names[:i]), unique=True))) if i else own(n)
        for i, n in enumerate(names)
    ]
    shuffled = data.draw(st.permutations(drafts))
    placed = [d.name for d in order(shuffled)]
    assert sorted(placed) == sorted(names)
    assert all(placed.index(need) < placed.index(d.name) for d in drafts for need in d.needs)


def test_cycles_and_unknown_needs_are_refused():
    with pytest.raises(PlanError, match="a → b → a"):
        order([own("a", "b"), own("b", "a")])
    with pytest.raises(PlanError, match="needs 'z', which is no step"):
        order([own("a", "z")])


@pytest.mark.parametrize(
    ("live", "action", "reason"),
    [
        (None, Action.RUN, "nothing is live yet"),
        (Deployed("sha256:other", 3, answering=True), Action.RUN, "generation 3 serves another bundle"),
        (Deployed("sha256:bb", 3, answering=False), Action.RUN, "generation 3 does not answer"),
        (Deployed("sha256:bb", 3, answering=True), Action.REUSE, "generation 3 is live"),
    ],
)
def test_deploy_is_decided_by_what_is_live(live, action, reason):
    bundle = own("bundle")
    deploy = Draft("deploy", "deploy", "local", {"endpoint": "e", "pool": "p"}, (Input("bundle", "bundle", "files"),))
    known = Known(live=live)
    finish(known, bundle, {}, "sha256:bb")
    step = plan([bundle, deploy], known).step("deploy")
    assert (step.action, step.reason) == (action, reason)


@pytest.mark.parametrize("text", ["accuracy >= 0.97", "loss<1e-3", " a.b == -1.5 ", "x > .5"])
def test_gates_parse(text):
    assert Gate.parse(text).metric


@pytest.mark.parametrize("text", ["", "accuracy", "accuracy => 1", "a >= b", "a >= nan", "__import__('os') > 1"])
def test_bad_gates(text):
    with pytest.raises(ValueError, match="not a gate"):
        Gate.parse(text)


def _measured(**metrics: float) -> dict[str, object]:
    return {"metrics": metrics, "facts": {}}


def test_a_missed_gate_says_by_how_much_and_nan_never_passes():
    spec = {"gates": ["accuracy >= 0.97", "loss < 1"]}
    assert judge_result("evaluate", spec, _measured(accuracy=0.97, loss=0.5)) is None
    error = judge_result("evaluate", spec, _measured(accuracy=0.9, loss=float("nan")))
    assert error is not None
    assert error.exit_code == 1
    assert "accuracy is 0.9, the gate asks >= 0.97, missed by 0.07" in error.message
    assert "loss is nan" in error.message
    missing = judge_result("evaluate", spec, _measured())
    assert missing is not None
    assert "accuracy was not measured (have: no metric)" in missing.message
