"""Parity: every way in which a broken model has been seen to pass, and that it fails here."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator.graph.parity import EXACT_DB, OutputMetrics, compare
from orchestrator.graph.verdict import Thresholds, Verdict, judge

RNG = np.random.default_rng(7)
LOGITS = RNG.normal(size=(16, 10)).astype(np.float32)


def verdict(reference: np.ndarray, candidate: np.ndarray, *, saturating: bool = False, **asked: float) -> Verdict:
    return judge(compare({"y": reference}, {"y": candidate}), Thresholds(**asked), saturating=saturating)


def changed(value: float, at: tuple[int, ...] = (3, 4), base: np.ndarray = LOGITS) -> np.ndarray:
    copy = base.copy()
    copy[at] = value
    return copy


def test_identical_outputs_pass_with_the_highest_figure() -> None:
    answer = verdict(LOGITS, LOGITS.copy(), saturating=True, min_sqnr_db=300, min_cosine=0.999999)
    assert answer.passed
    assert answer.minimum == {"y": {"min_sqnr_db": EXACT_DB, "min_cosine": pytest.approx(1.0, abs=2e-6)}}


# The candidate is broken; `nan > limit` is False, so a careless comparison says passed.
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("saturating", [True, False])
def test_one_nonfinite_value_fails_whatever_the_thresholds(value: float, saturating: bool) -> None:
    answer = verdict(LOGITS, changed(value), saturating=saturating, min_sqnr_db=-1000, min_cosine=-1)
    assert [r.rule for r in answer.reasons] == ["nonfinite"]
    assert answer.minimum == {"y": None}


def test_all_nan_fails() -> None:
    assert not verdict(LOGITS, np.full_like(LOGITS, np.nan), min_sqnr_db=-1000).passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_at_the_same_place_in_the_same_way_is_no_fault(value: float) -> None:
    assert verdict(changed(value), changed(value)).passed


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [(math.inf, -math.inf), (math.inf, math.nan), (math.nan, math.inf), (math.nan, 0.0), (math.inf, 65504.0)],
)
def test_nonfinite_in_another_way_fails(reference: float, candidate: float) -> None:
    answer = verdict(changed(reference), changed(candidate), min_sqnr_db=-1000)
    assert [r.rule for r in answer.reasons] == ["nonfinite"]


def test_nonfinite_at_another_place_fails() -> None:
    assert not verdict(changed(math.nan, (0, 0)), changed(math.nan, (0, 1)), min_sqnr_db=-1000).passed


@pytest.mark.parametrize("value", [65504.0, -65504.0, 70000.0])
def test_saturation_fails_on_a_saturating_soc_before_any_number_is_looked_at(value: float) -> None:
    reference = changed(60000.0 * np.sign(value))
    saturated = changed(value)
    assert [r.rule for r in verdict(reference, saturated, saturating=True, min_sqnr_db=10).reasons] == ["saturation"]
    assert verdict(reference, saturated, saturating=False, min_sqnr_db=10).passed


def test_a_reference_that_is_itself_that_large_is_no_saturation() -> None:
    assert verdict(changed(70000.0), changed(70000.0), saturating=True).passed


def test_nan_turned_into_zero_fails_on_a_saturating_soc() -> None:
    reference, zeroed = np.tile(np.float32(2.0), (16, 10)), np.tile(np.float32(2.0), (16, 10))
    zeroed[5] = 0.0
    answer = verdict(reference, zeroed, saturating=True, min_sqnr_db=-1000)
    assert [r.rule for r in answer.reasons] == ["saturation"]
    assert "10 zeros" in answer.reasons[0].text


def test_small_values_rounded_to_zero_are_no_lost_zeros() -> None:
    reference = changed(1e-9)
    reference[0, 0] = 0.001 * np.abs(LOGITS).max()
    candidate = reference.copy()
    candidate[3, 4] = candidate[0, 0] = 0.0
    assert verdict(reference, candidate, saturating=True, min_sqnr_db=40).passed


@pytest.mark.parametrize(
    "candidate", [LOGITS[:8], LOGITS.reshape(10, 16), LOGITS[..., None], LOGITS.astype(np.float64)]
)
def test_other_shapes_and_dtypes_fail_first(candidate: np.ndarray) -> None:
    answer = verdict(LOGITS, candidate, min_sqnr_db=-1000)
    assert [r.rule for r in answer.reasons] == ["shape"]


def test_missing_and_extra_outputs_fail() -> None:
    missing = judge(compare({"a": LOGITS, "b": LOGITS}, {"a": LOGITS}), Thresholds(), saturating=False)
    extra = judge(compare({"a": LOGITS}, {"a": LOGITS, "b": LOGITS}), Thresholds(), saturating=False)
    assert [(r.output, r.rule) for r in missing.reasons] == [("b", "shape")]
    assert [(r.output, r.rule) for r in extra.reasons] == [("b", "shape")]


def test_nothing_compared_is_not_passed() -> None:
    assert [r.rule for r in judge({}, Thresholds(), saturating=False).reasons] == ["nothing"]
    empty = np.zeros((0, 10), np.float32)
    assert not verdict(empty, empty).passed


def test_one_bad_sample_among_many_fails_though_the_mean_looks_well() -> None:
    reference = RNG.normal(size=(1000, 10)).astype(np.float32)
    candidate = reference.copy()
    candidate[777] += 0.05
    measured = compare({"y": reference}, {"y": candidate})["y"]
    assert measured.sqnr_db > 50
    assert measured.worst_sqnr_db < 40
    assert measured.worst_sample == 777
    assert not judge({"y": measured}, Thresholds(min_sqnr_db=45), saturating=False).passed


def test_a_pure_scale_error_hides_from_cosine_but_not_from_sqnr() -> None:
    answer = verdict(LOGITS, LOGITS * np.float32(1.1), min_sqnr_db=40, min_cosine=0.999)
    assert [r.text[:4] for r in answer.reasons] == ["SQNR"]


def test_the_minimum_that_is_printed_passes_when_used() -> None:
    candidate = LOGITS + RNG.normal(scale=1e-3, size=LOGITS.shape).astype(np.float32)
    first = verdict(LOGITS, candidate, min_cosine=0.9999999999)
    assert {r.rule for r in first.reasons} == {"numbers"}
    asked = first.minimum["y"]
    assert asked is not None
    assert verdict(LOGITS, candidate, **asked).passed


def test_half_precision_noise_measures_as_theory_says() -> None:
    """Rounding to fp16 (11 bit significand) leaves about 6.02 * 11 + 10 dB; 60 to 85 dB in practice."""
    measured = compare({"y": LOGITS}, {"y": LOGITS.astype(np.float16).astype(np.float32)})["y"]
    assert 60 < measured.worst_sqnr_db < 90
    assert measured.top1_agreement == 1.0


def test_top1_counts_rows_and_a_row_with_nan_never_agrees() -> None:
    flipped = LOGITS.copy()
    flipped[0] = -flipped[0]
    flipped[1] = np.nan
    assert compare({"y": LOGITS}, {"y": flipped})["y"].top1_agreement == pytest.approx(14 / 16)
    assert compare({"y": LOGITS[:, :1]}, {"y": LOGITS[:, :1]})["y"].top1_agreement is None
    assert compare({"y": LOGITS[None]}, {"y": LOGITS[None]})["y"].top1_agreement is None


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_integers_and_booleans_are_judged_by_agreement(dtype: type) -> None:
    reference = (np.arange(100).reshape(20, 5) % 2).astype(dtype)
    other = reference.copy()
    other[0, 0] = 1
    assert verdict(reference, reference.copy(), saturating=True).passed
    assert not verdict(reference, other, saturating=True).passed
    assert verdict(reference, other, saturating=True, min_agreement=0.99).passed


def test_large_integers_are_compared_exactly() -> None:
    reference = np.array([[2**53 + 1]], np.int64)
    assert not verdict(reference, np.array([[2**53]], np.int64)).passed


def test_zero_outputs() -> None:
    zeros = np.zeros((4, 3), np.float32)
    assert verdict(zeros, zeros.copy(), saturating=True, min_cosine=1.0).passed
    assert not verdict(zeros, zeros + np.float32(1e-6), min_cosine=0.5).passed


def test_text_outputs_are_refused() -> None:
    assert [r.rule for r in verdict(np.array(["a"]), np.array(["a"])).reasons] == ["shape"]


@pytest.mark.parametrize(
    ("reference", "candidate", "passed"),
    [(0.97, 0.966, True), (0.97, 0.96, False), (0.97, math.nan, False), (math.nan, 0.97, False), (0.9, 0.99, True)],
)
def test_the_task_metric_may_fall_so_far_and_nan_fails(reference: float, candidate: float, passed: bool) -> None:
    metrics = compare({"y": LOGITS}, {"y": LOGITS})
    asked = Thresholds(metric_drop={"accuracy": 0.005})
    answer = judge(
        metrics, asked, saturating=False, reference_task={"accuracy": reference}, candidate_task={"accuracy": candidate}
    )
    assert answer.passed is passed


def test_a_task_metric_that_was_not_measured_fails() -> None:
    answer = judge(compare({"y": LOGITS}, {"y": LOGITS}), Thresholds(metric_drop={"accuracy": 1}), saturating=False)
    assert [r.rule for r in answer.reasons] == ["metric"]


@pytest.mark.parametrize("asked", [{"min_sqnr_db": math.nan}, {"min_cosine": math.nan}])
def test_a_nan_threshold_fails(asked: dict[str, float]) -> None:
    assert not verdict(LOGITS, LOGITS, **asked).passed


floats = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]), hnp.array_shapes(min_dims=1, max_dims=3, max_side=4),
    elements=st.floats(width=16, allow_nan=True, allow_infinity=True),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(reference=floats, data=st.data())
def test_metrics_are_always_finite_json_and_survive_it(reference: np.ndarray, data: st.DataObject) -> None:
    values = st.floats(width=16)
    candidate = data.draw(hnp.arrays(reference.dtype, reference.shape, elements=values))
    measured = compare({"y": reference}, {"y": candidate})
    text = json.dumps({name: m.to_json() for name, m in measured.items()}, allow_nan=False)
    assert {name: OutputMetrics.from_json(m) for name, m in json.loads(text).items()} == measured
    answer = judge(measured, Thresholds(min_sqnr_db=-1000), saturating=False)
    bad = ~(np.isfinite(reference) & np.isfinite(candidate)) & ~(
        (reference == candidate) | (np.isnan(reference) & np.isnan(candidate))
    )
    assert answer.passed is not bool(bad.any())
    json.dumps(answer.to_json(), allow_nan=False)


def test_values_at_the_end_of_float64_do_not_overflow_the_metrics() -> None:
    top = np.array([[1.7e308, -1.7e308]])
    measured = compare({"y": top}, {"y": -top})["y"]
    json.dumps(measured.to_json(), allow_nan=False)
    assert measured.worst_cosine == pytest.approx(-1)
