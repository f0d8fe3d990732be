"""Precision modes: what they do to operators on each SoC, and the edits of the mixed lists."""

from __future__ import annotations

import pytest

from orchestrator.ascend.precision import ALIASES, MODES, policy
from orchestrator.core.errors import PlanError


def test_fp16_rounds_all_and_origin_nothing() -> None:
    for op_type in ("Conv", "MatMul", "Add", "Softmax", "ReduceMean", "SomethingElse"):
        assert policy("Ascend310P3", "fp16").of(op_type).output == "fp16"
        assert policy("Ascend310P3", "fp16").of(op_type).inputs == "fp16"
        assert policy("Ascend310P3", "origin").of(op_type).output == "keep"


def test_settings_and_statistics_are_read_as_they_are() -> None:
    plan = policy("Ascend910B4", "fp16")
    assert plan.of("Resize").wide_inputs == {1, 2}
    assert plan.of("BatchNormalization").wide_inputs == {1, 2, 3, 4}
    assert not plan.of("Clip").wide_inputs


def test_cube_mode_rounds_what_the_matrix_unit_reads() -> None:
    plan = policy("Ascend910B4", "cube_fp16in_fp32out")
    assert (plan.of("MatMul").inputs, plan.of("MatMul").output) == ("fp16", "keep")
    assert (plan.of("Add").inputs, plan.of("Add").output) == ("keep", "keep")
    assert policy("Ascend310P3", "cube_fp16in_fp32out").of("MaxPool").output == "fp16"  # no fp32 kernel there
    assert policy("Ascend910B4", "cube_fp16in_fp32out").of("MaxPool").output == "keep"


def test_what_can_stay_in_fp32() -> None:
    for soc in ("Ascend310P3", "Ascend910A"):
        assert not policy(soc, "fp16").can_keep("Conv")
        assert not policy(soc, "fp16").can_keep("MatMul")
        assert policy(soc, "fp16").can_keep("Mul")
    assert policy("Ascend910B4", "fp16").can_keep("Conv")
    assert policy("Ascend310B1", "fp16").can_keep("MatMul")
    assert not policy("Ascend310P3", "fp16").can_keep("MaxPool")
    assert policy(None, "fp16").can_keep("Conv")


def test_lists_differ_by_soc() -> None:
    newer, older = policy("Ascend910B4", "mixed_float16"), policy("Ascend310P3", "mixed_float16")
    assert newer.colour("Pow") == "black"
    assert older.colour("Pow") == "grey"
    assert newer.of("Pow").output == "keep"
    assert older.of("Pow").follows
    for plan in (newer, older):
        assert plan.colour("Conv") == "white"
        assert not plan.of("Conv").follows
        assert plan.of("Conv").output == "fp16"
        assert plan.of("Relu").follows


def test_edits_move_operators_by_their_ascend_name() -> None:
    edits = {"black-list": {"to-add": ["SoftmaxV2"], "to-remove": ["Pow"]}, "white-list": {"to-add": ["Relu"]}}
    plan = policy("Ascend910B4", "mixed_float16", mixlist=edits)
    assert plan.of("Softmax").output == "keep"
    assert plan.of("Pow").follows
    assert plan.of("Relu").output == "fp16"
    assert not plan.of("Relu").follows
    assert plan.to_json()["mixlist"] == {"Pow": "grey", "Relu": "white", "SoftmaxV2": "black"}


@pytest.mark.parametrize(
    ("mixlist", "what"),
    [
        ({"grey-list": {"to-add": ["Add"]}}, "grey-list"),
        ({"black-list": {"add": ["Add"]}}, "black-list.add"),
        ({"black-list": {"to-add": ["Add"]}, "white-list": {"to-add": ["Add"]}}, "Add cannot be on"),
    ],
)
def test_wrong_edits(mixlist: dict[str, dict[str, list[str]]], what: str) -> None:
    with pytest.raises(PlanError, match=what):
        policy("Ascend910B4", "mixed_float16", mixlist=mixlist)


def test_bfloat16_needs_a_soc_that_has_it() -> None:
    for mode in ("bf16", "mixed_bfloat16"):
        for soc in ("Ascend310P3", "Ascend910A"):
            with pytest.raises(PlanError, match=f"needs bfloat16, which {soc}"):
                policy(soc, mode)
        for soc in ("Ascend910B4", "Ascend310B1", "Ascend910_9391"):
            assert policy(soc, mode).low == "bf16"


def test_unknown_modes_and_lists_without_lists() -> None:
    with pytest.raises(PlanError, match="unknown precision mode 'fp8'"):
        policy("Ascend310P3", "fp8")
    with pytest.raises(PlanError, match="has no lists"):
        policy("Ascend310P3", "fp16", mixlist={"black-list": {"to-add": ["Add"]}})
    with pytest.raises(PlanError, match="unknown SoC"):
        policy("Ascend311", "fp16")


def test_older_names() -> None:
    assert set(ALIASES.values()) <= set(MODES)
    assert policy("Ascend310P3", "force_fp32") == policy("Ascend310P3", "cube_fp16in_fp32out")


def test_overflow_and_assumptions() -> None:
    assert policy("Ascend310P3", "fp16").saturating
    assert policy("Ascend910A", "fp16").saturating
    assert policy("Ascend310B1", "fp16").saturating
    assert not policy("Ascend910B4", "fp16").saturating
    assert not policy("Ascend910_9391", "fp16").saturating
    assert not policy(None, "fp16").saturating
    unknown = policy("Ascend310", "fp16")
    assert unknown.saturating
    assert any("no source tells how Ascend310 overflows" in text for text in unknown.assumptions)
    assert any("sum in 16 bits" in text for text in policy("Ascend910B4", "fp16", accumulate="fp16").assumptions)
    assert policy("Ascend910B4", "fp16", accumulate="fp16").accumulates("ReduceMean") == "fp16"
    assert policy("Ascend910B4", "fp16", accumulate="fp16").accumulates("MatMul") == "fp32"
