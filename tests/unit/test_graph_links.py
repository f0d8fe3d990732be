"""Links of the parity chain: measured once, judged by whatever limits rule later."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.graph.links import Link, misses
from orchestrator.graph.parity import compare
from orchestrator.graph.verdict import thresholds_for
from orchestrator.plan.gates import judge_result

REFERENCE = {"logits": np.random.default_rng(0).standard_normal((200, 10)).astype(np.float32)}


def link(candidate: str, noise: float, **fields: object) -> Link:
    random = np.random.default_rng(1)
    noisy = {
        "logits": (REFERENCE["logits"] * (1 + noise * random.standard_normal((200, 10)))).astype(np.float32),
    }
    target = "" if candidate == "onnx" else "npu"
    precision = "fp16" if candidate in {"twin", "variant"} else "fp32"
    return Link(candidate, "torch", target, precision, "cpu", metrics=compare(REFERENCE, noisy), **fields)  # type: ignore[arg-type]


def test_a_link_survives_json() -> None:
    made = link("twin", 1e-3, task={"accuracy": 0.98}, reference_task={"accuracy": 0.99})
    assert Link.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_names_say_who_is_held_against_whom() -> None:
    assert link("onnx", 0).name == "torch → onnx"
    assert link("twin", 0).name == "torch → twin (npu)"


@pytest.mark.parametrize(
    ("noise", "asked", "passes"),
    [
        (1e-3, {}, True),  # about 60 dB, the default of fp16 is 40
        (3e-2, {}, False),  # about 30 dB
        (3e-2, {"min_sqnr_db": 20.0, "min_cosine": 0.99}, True),
        (1e-3, {"min_sqnr_db": 90.0}, False),
    ],
)
def test_the_limits_that_rule_now_decide(noise: float, asked: dict[str, float], passes: bool) -> None:
    found = misses([link("twin", noise)], {"npu": asked})
    assert (found == []) is passes
    if not passes:
        assert found[0].startswith("torch → twin (npu): logits: SQNR ")
        assert "would pass: min_sqnr_db " in found[0]


def test_what_rounds_nothing_must_be_like_an_export_whatever_the_target_asks() -> None:
    assert misses([link("graph", 1e-3)], {"npu": {"min_sqnr_db": 20.0}})
    assert misses([link("graph", 1e-6)], {"npu": {"min_sqnr_db": 20.0}}) == []


def test_a_link_that_was_not_run_is_neither_passed_nor_missed() -> None:
    skipped = Link("variant", "torch", "npu", "fp16", "not run", skipped="no device here")
    assert skipped.judge({}) is None
    assert misses([skipped], {}) == []


def test_metric_drop_is_judged_per_target() -> None:
    made = link("twin", 1e-4, task={"accuracy": 0.95}, reference_task={"accuracy": 0.99})
    assert misses([made], {"npu": {"metric_drop": {"accuracy": 0.05}}}) == []
    (miss,) = misses([made], {"npu": {"metric_drop": {"accuracy": 0.01}}})
    assert "accuracy fell by 0.04" in miss


def test_a_saturating_chip_hides_nothing_from_the_verdict() -> None:
    reference = {"y": np.full((4, 8), 1e5, np.float32)}
    hidden = {"y": np.full((4, 8), 65504, np.float32)}
    made = Link(
        "twin", "torch", "npu", "fp16", "cpu", saturating=True, metrics=compare({"y": reference["y"] / 2}, hidden)
    )
    (miss,) = misses([made], {"npu": {"min_sqnr_db": -400.0, "min_cosine": -1.0}})
    assert "at or above 65504" in miss


def test_a_stored_result_is_judged_by_the_plan() -> None:
    result = {"metrics": {}, "facts": {"links": [link("twin", 3e-2).to_json()]}}
    assert judge_result("parity", {"parity": {"npu": {"min_sqnr_db": 20.0, "min_cosine": 0.9}}}, result) is None
    error = judge_result("parity", {"parity": {"npu": {}}}, result)
    assert error is not None
    assert error.exit_code == 1
    assert "targets[].parity" in (error.hint or "")


@pytest.mark.parametrize(
    ("precision", "db", "cosine"),
    [
        ("fp16", 40, 0.9995),
        ("mixed_float16", 40, 0.9995),
        ("mixed_bfloat16", 30, 0.997),
        ("origin", 80, None),
        ("fp32", 80, None),
    ],
)
def test_defaults_follow_the_precision(precision: str, db: float, cosine: float | None) -> None:
    limits = thresholds_for(precision, {"min_sqnr_db": None})
    assert (limits.min_sqnr_db, limits.min_cosine) == (db, cosine)


def test_the_99th_percentile_lies_between_the_worst_sample_and_all() -> None:
    metrics = link("twin", 1e-3).metrics["logits"]
    assert metrics.worst_sqnr_db <= metrics.p99_sqnr_db <= metrics.sqnr_db + 10
    assert metrics.p99_sqnr_db > metrics.worst_sqnr_db


def test_a_variant_that_was_run_in_fp32_gets_no_allowance_for_fp16() -> None:
    noisy = replace(link("variant", 1e-3), precision="fp32")
    allowance = {"npu": {"min_sqnr_db": 35.0}}
    assert misses([noisy], allowance)
    assert misses([link("variant", 1e-3)], allowance) == []
    assert noisy.thresholds(allowance).min_sqnr_db == 80.0
    assert noisy.thresholds({"npu": {"min_sqnr_db": 95.0}}).min_sqnr_db == 95.0


def test_whole_numbers_that_differ_are_not_called_identical() -> None:
    reference, other = np.zeros((2, 4), np.int64), np.zeros((2, 4), np.int64)
    other[0, 0] = 1
    differing = Link("onnx", "torch", "", "fp32", "cpu", metrics=compare({"y": reference}, {"y": other}))
    assert differing.summary == "87.50% of the values equal"
    same = Link("onnx", "torch", "", "fp32", "cpu", metrics=compare({"y": reference}, {"y": reference}))
    assert same.summary == "identical"
