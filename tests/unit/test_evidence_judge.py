from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.rollout.evidence.judge import Judge
from orchestrator.rollout.evidence.judgement import MetricJudgement
from orchestrator.rollout.evidence.rows import Counts, Delta, Row, Sample, row_from_json
from orchestrator.rollout.evidence.spec import METRICS, AnalysisSpec, MetricSpec, PrometheusSpec
from orchestrator.serving.split import Splitter


def spec(*names: str, **more: float) -> AnalysisSpec:
    return AnalysisSpec(metrics=tuple(MetricSpec(name=name) for name in names), **more)  # pyright: ignore


def row(
    canary: Counts, stable: Counts, t: float = 0, weight: int = 10, traffic: str = "weighted", **more: object
) -> Delta:
    return Delta(t=t, boot="a", traffic=traffic, weight=weight, canary=canary, stable=stable, **more)  # type: ignore[arg-type]


def steady(judge: Judge, ticks: int, canary: Counts, stable: Counts, **more: object) -> Judge:
    for t in range(ticks):
        judge.add(row(canary, stable, t, **more))  # type: ignore[arg-type]
    return judge


def only(judge: Judge) -> MetricJudgement:
    return judge.judgement().metrics[0]


def dealt(judge: Judge, seed: int, rates: tuple[float, float], ticks: int, size: int, weight: int) -> bool:
    """Deal requests in the router's permuted blocks, look every `size` requests, and tell whether it failed at any look."""
    dice, splitter = random.Random(seed), Splitter({0: 100 - weight, 1: weight}, str(seed))
    for t in range(ticks):
        counts = [[0, 0], [0, 0]]
        wave = 1 + 0.9 * ((t // 20) % 2)
        for _ in range(size):
            arm = splitter.next() or 0
            counts[arm][0] += 1
            counts[arm][1] += dice.random() < wave * rates[arm]
        (n0, x0), (n1, x1) = counts
        judge.add(row(Counts(requests=n1, errors=x1), Counts(requests=n0, errors=x0), t, weight))
    return judge.judgement().state == "failed"


@pytest.mark.parametrize(("weight", "rate"), [(10, 0.05), (50, 0.45)])
def test_good_canaries_are_seldom_called_bad_in_permuted_blocks(weight: int, rate: float) -> None:
    alarms = sum(dealt(Judge(spec("error_rate", alpha=0.2)), seed, (rate, rate), 150, 23, weight) for seed in range(40))
    assert alarms <= stats.binom.ppf(0.999, 40, 0.2)


def test_bad_canaries_are_caught() -> None:
    assert all(dealt(Judge(spec("error_rate")), seed, (0.01, 0.08), 150, 50, 10) for seed in range(10))


def test_no_error_passes_after_the_margin_is_cleared_and_says_how_many_are_needed() -> None:
    judge = steady(Judge(spec("error_rate")), 10, Counts(requests=20), Counts(requests=180))
    said = only(judge)
    assert said.state == "inconclusive"
    assert said.needs is not None
    steady(judge, said.needs // 20 + 1, Counts(requests=20), Counts(requests=180))
    assert judge.judgement().state == "passed"
    assert only(judge).upper < 0.01
    assert "margin 1 %" in only(judge).text


def test_without_requests_nothing_is_passed() -> None:
    assert Judge(spec("error_rate", "latency", "parity", "users")).judgement().state == "inconclusive"
    drift = Judge(spec("drift")).judgement()
    assert drift.state == "inconclusive"
    assert drift.text == "nothing decides"


def test_worse_within_the_margin_is_tolerated() -> None:
    analysis = AnalysisSpec(metrics=(MetricSpec(name="error_rate", margin=0.1),))
    judge = steady(Judge(analysis), 400, Counts(requests=50, errors=2), Counts(requests=50, errors=1))
    said = only(judge)
    assert said.e_value > said.threshold
    assert said.state == "passed"
    again = steady(Judge(spec("error_rate")), 400, Counts(requests=50, errors=2), Counts(requests=50, errors=1))
    assert only(again).state == "failed"


def test_slow_answers_are_compared_with_stable_of_the_same_batch_size() -> None:
    judge = Judge(spec("latency"))
    big, small = {"16": {"150": 40, "151": 40}}, {"1": {"100": 20, "101": 20}}
    steady(judge, 30, Counts(compute={"1": {"100": 5, "101": 5}}), Counts(compute=small | big), weight=20)
    assert all(metric.state != "failed" for metric in judge.judgement().metrics)
    steady(judge, 30, Counts(compute={"1": {"104": 10}}), Counts(compute=small | big), weight=20)
    said = judge.judgement()
    assert said.state == "failed"
    assert {metric.name for metric in said.metrics if metric.state == "failed"} == {
        "latency_p50",
        "latency_p90",
        "latency_p99",
    }


def test_replayed_samples_promote_a_quiet_endpoint_and_are_named() -> None:
    judge = steady(Judge(spec("error_rate")), 50, Counts(requests=10), Counts(requests=10), traffic="probe")
    said = judge.judgement()
    assert (said.state, said.synthetic_share, only(judge).synthetic_share) == ("passed", 1.0, 1.0)
    steady(judge, 10, Counts(requests=1, errors=1), Counts(requests=9))
    assert only(judge).state == "failed", "replayed samples do not outvote users"


def test_chosen_sides_are_not_compared() -> None:
    for traffic in ("header", "version", "mirror"):
        judge = steady(
            Judge(spec("error_rate")), 50, Counts(requests=10, errors=10), Counts(requests=10), traffic=traffic
        )
        assert only(judge).canary_n == 0


def test_sticky_traffic_is_judged_by_user() -> None:
    one_bad_user = Counts(requests=100, errors=50, users=10, users_error=0)
    judge = Judge(spec("error_rate", "users"))
    judge.add(row(Counts(requests=50, errors=50, users=1, users_error=1), Counts(users=20), traffic="sticky"))
    steady(judge, 160, one_bad_user, Counts(requests=900, users=90, users_error=1), traffic="sticky")
    users = judge.judgement().metrics[1]
    assert (users.state, users.canary_n) == ("passed", 1601)
    steady(judge, 20, Counts(users=10, users_error=2), Counts(users=90), traffic="sticky")
    assert judge.judgement().metrics[1].state == "failed"


def test_pairs_pass_or_fail_by_the_margin() -> None:
    good = steady(
        Judge(spec("parity")), 80, Counts(), Counts(), pairs={"n": 10, "agree": 10, "top1": 10}, traffic="mirror"
    )
    assert good.judgement().state == "passed"
    failed = steady(
        Judge(spec("parity")), 20, Counts(), Counts(), pairs={"n": 10, "agree": 10, "failed": 3}, traffic="mirror"
    )
    assert only(failed).state == "failed"
    flips = steady(Judge(spec("parity")), 20, Counts(), Counts(), pairs={"n": 9, "agree": 9, "top1": 8, "flips": 1})
    assert [m.state for m in flips.judgement().metrics] == ["inconclusive", "failed"]
    regression = steady(Judge(spec("parity")), 80, Counts(), Counts(), pairs={"n": 10, "agree": 10})
    assert regression.judgement().metrics[1].text.endswith("no classes")
    assert regression.judgement().state == "passed"


def test_all_traffic_on_the_canary_is_compared_with_what_stable_was() -> None:
    judge = Judge(spec("error_rate"))
    for t in range(20):
        judge.prime(row(Counts(), Counts(requests=100, errors=1), t, weight=0))
    steady(judge, 20, Counts(requests=50, errors=0), Counts(), weight=100)
    assert only(judge).state == "passed"
    assert "no requests beside" in only(judge).text
    steady(judge, 20, Counts(requests=50, errors=5), Counts(), weight=100)
    assert only(judge).state == "failed"


def test_drift_warns_and_decides_nothing() -> None:
    judge = Judge(spec("drift", "error_rate"))
    judge.add(row(Counts(), Counts(), classes={"canary": {"0": 900, "1": 100}, "stable": {"0": 100, "1": 900}}))
    said = judge.judgement()
    assert "other classes" in said.warnings[0]
    assert (said.metrics[0].state, said.metrics[0].decides) == ("passed", False)
    same = Judge(spec("drift"))
    same.add(row(Counts(), Counts(), classes={"canary": {"0": 400, "1": 110}, "stable": {"0": 410, "1": 99}}))
    assert not same.judgement().warnings


def test_a_dry_run_decides_nothing_and_takes_no_alpha() -> None:
    dry = AnalysisSpec(metrics=(MetricSpec(name="error_rate"), MetricSpec(name="nonfinite", dry_run=True)))
    judge = steady(Judge(dry), 60, Counts(requests=10, nonfinite=10), Counts(requests=90))
    said = judge.judgement()
    assert [metric.state for metric in said.metrics] == ["passed", "failed"]
    assert said.state == "passed"
    assert said.metrics[0].threshold == only(Judge(spec("error_rate"))).threshold


@pytest.mark.parametrize(
    ("success", "failure", "value", "state"),
    [
        ("result >= 0.95", "", 0.97, "passed"),
        ("result >= 0.95", "", 0.9, "failed"),
        ("", "result < 0.5", 0.4, "failed"),
        ("", "result < 0.5", 0.6, "passed"),
        ("result > 0.9", "result < 0.5", 0.7, "inconclusive"),
        ("result > 0.9", "result < 0.95", 0.93, "failed"),
        ("result > 0.9", "result < 0.5", 0.95, "passed"),
        ("", "", 1.0, "inconclusive"),
        ("result > 0", "", None, "inconclusive"),
        ("result > 0", "", float("nan"), "inconclusive"),
    ],
)
def test_the_truth_table_of_queries(success: str, failure: str, value: float | None, state: str) -> None:
    metric = MetricSpec(
        name="mine", prometheus=PrometheusSpec("http://x", "up"), success_condition=success, failure_condition=failure
    )
    judge = Judge(AnalysisSpec(metrics=(metric,)))
    judge.add(row_from_json(json.loads(json.dumps(Sample(t=1, metric="mine", value=value).to_json()))))
    assert judge.judgement().state == state


def test_errors_of_a_query_neither_pass_nor_fail() -> None:
    metric = MetricSpec(name="mine", prometheus=PrometheusSpec("http://x", "up"), success_condition="result > 0")
    judge = Judge(AnalysisSpec(metrics=(metric,)))
    judge.add(Sample(t=1, metric="mine", value=1.0))
    for t in range(9):
        judge.add(Sample(t=t, metric="mine", error="refused"))
    assert judge.judgement().state == "inconclusive"
    assert "9 errors in a row" in judge.judgement().text


_small = st.integers(0, 40)
_side = st.builds(
    lambda n, x, y, b, u: Counts(requests=n, errors=min(n, x), nonfinite=min(n, y), users=u, compute={"1": {str(100 + b): n}}),
    _small, _small, st.integers(0, 1), st.integers(0, 3), st.integers(0, 5),
)  # fmt: skip
_rows = st.lists(
    st.builds(
        lambda c, s, w, k: row(c, s, 0, w, k, pairs={"n": 3, "agree": 3}),
        _side, _side, st.sampled_from([0, 5, 50, 100]), st.sampled_from(["weighted", "sticky", "probe", "header"]),
    ),
    max_size=25,
)  # fmt: skip


@given(_rows)
@settings(max_examples=6, deadline=None)
def test_a_replay_of_stored_rows_says_the_same(rows: list[Row]) -> None:
    online, replay = Judge(spec(*METRICS)), Judge(spec(*METRICS))
    for each in rows:
        online.add(each)
        online.judgement()
        replay.add(row_from_json(json.loads(json.dumps(each.to_json()))))
    assert replay.judgement() == online.judgement()
    assert replay.curve() == online.curve()
    json.dumps(online.judgement().to_json(), allow_nan=False)


def test_stored_rows_can_be_judged_again_with_another_margin() -> None:
    rows = [row(Counts(requests=20, errors=int(t % 5 == 0)), Counts(requests=20), t, 50) for t in range(100)]
    strict, mild = Judge(spec("error_rate")), Judge(AnalysisSpec(metrics=(MetricSpec(name="error_rate", margin=0.2),)))
    for each in rows:
        strict.add(each)
        mild.add(each)
    assert (strict.judgement().state, mild.judgement().state) == ("failed", "passed")


def test_absurd_counts_are_borne_and_curves_stay_small() -> None:
    judge = Judge(spec(*METRICS))
    huge = Counts.from_json(
        {"requests": 10**30, "errors": float("nan"), "nonfinite": -5, "compute": {"1": {"100": 10**20}}}
    )
    for t in range(300):
        judge.add(row(huge, huge, t))
    json.dumps(judge.judgement().to_json(), allow_nan=False)
    assert all(len(points) < 400 for points in judge.curve().values())


def test_specs_survive_json() -> None:
    query = MetricSpec(name="mine", prometheus=PrometheusSpec("http://x", "up"), failure_limit=2)
    made = AnalysisSpec(metrics=(MetricSpec(name="latency", quantiles=(0.9,), dry_run=True), query), alpha=0.1)
    assert AnalysisSpec.from_json(json.loads(json.dumps(made.to_json()))) == made


# --- what stable fails as well ---


def poisoned(judge: Judge, ticks: int, bad: int, shared: int) -> Judge:
    canary = Counts(requests=100, errors=bad, shared=shared)
    return steady(judge, ticks, canary, Counts(requests=100))


def test_failures_that_stable_shares_are_no_alarm_and_no_promotion() -> None:
    judge = poisoned(Judge(spec("error_rate")), 100, 50, 50)
    said = only(judge)
    assert (said.state, said.canary_rate) == ("inconclusive", 0.5)
    assert said.upper > said.margin
    assert "at stable as well" in said.text
    assert only(poisoned(judge, 5, 50, 0)).state == "failed", "its own errors are seen among them"


def test_without_the_word_shared_stored_rows_say_what_they_said() -> None:
    old = {"kind": "counts", "t": 1.0, "boot": "a", "traffic": "weighted", "weight": 50}
    old |= {"canary": {"requests": 100, "errors": 50}, "stable": {"requests": 100}}
    judge = Judge(spec("error_rate"))
    judge.add(row_from_json(old))
    assert only(judge).state == "failed"
    again = row(Counts(requests=9, errors=3, shared=2, users=3, users_error=2, users_shared=2, users_both=1), Counts())
    assert row_from_json(json.loads(json.dumps(again.to_json()))) == again


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 9)), max_size=20))
def test_shared_failures_never_add_evidence_and_never_lower_the_bound(ticks: list[tuple[int, int, int, int]]) -> None:
    plain, thinned = Judge(spec("error_rate")), Judge(spec("error_rate"))
    for t, (n, most, shared, x0) in enumerate(ticks):
        x = min(n, most)
        for judge, both in ((plain, 0), (thinned, min(x, shared))):
            judge.add(
                row(Counts(requests=n, errors=x, shared=both), Counts(requests=40, errors=x0), t, (10, 50, 100)[t % 3])
            )
    assert only(thinned).e_value <= only(plain).e_value + 1e-9
    assert only(thinned).upper == only(plain).upper


def test_users_whose_failures_stable_shares_end_no_rollout() -> None:
    stable = Counts(requests=900, users=90)
    mallory = Counts(requests=100, errors=100, shared=100, users=10, users_error=10, users_shared=10)
    said = only(steady(Judge(spec("users")), 50, mallory, stable, traffic="sticky"))
    assert (said.state, said.canary_rate) == ("inconclusive", 1.0)
    judge = steady(Judge(spec("users")), 5, mallory, stable, traffic="sticky")
    steady(judge, 10, Counts(requests=10, errors=10, users_both=10), Counts(requests=90), traffic="sticky")
    assert only(judge).state == "failed", "the same users have met the canary's own errors as well"
