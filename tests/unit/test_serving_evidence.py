"""What a router counts of generations that are compared."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import orjson
import pytest

from orchestrator.serving.dispatch.lanes import Lane, Request
from orchestrator.serving.link.wire import NONFINITE, SATURATED
from orchestrator.serving.observe.arm_counts import Room, Users
from orchestrator.serving.observe.arms import Arm, Traffic
from orchestrator.serving.observe.buckets import bucket_of
from orchestrator.serving.observe.canary_gauges import canary_families
from orchestrator.serving.observe.evidence import Evidence
from orchestrator.serving.observe.exposition import write
from orchestrator.serving.protocol.tensors import from_array
from orchestrator.serving.table import RoutingTable

RAN = ("edge-0", 1, 140)
Json = dict[str, Any]


def arm(generation: int, traffic: Traffic = "weighted", weight: int = 10, endpoint: str = "digits") -> Arm:
    return Arm(endpoint, generation, traffic, weight)


def request(
    of: Arm | None, *, user: int = -1, flags: int = 0, ran: tuple[str, int, int] = RAN, fell_back: bool = False
) -> Request:
    found = Request(cast("Any", None), cast("Lane", None), cast("Any", None), None, 0.0, 9.0, False)
    found.arm, found.user, found.flags, found.ran, found.fell_back = of, user, flags, ran, fell_back
    return found


def table(version: int = 7, stable: int = 3, canary: int = 4, weight: int = 10, *, split: bool = True) -> RoutingTable:
    rows = [
        {
            "generation": g,
            "bundle": f"sha256:{g:064x}",
            "path": f"/b/{g}",
            "runtime": "onnx-cpu",
            "weight": w,
            "state": s,
            "device": "cpu",
        }
        for g, w, s in ((stable, 100 - weight, "live"), (canary, weight, "staged"))
    ]
    endpoint: Json = {"pool": "edge", "generations": rows}
    if split:
        endpoint["split"] = {"stable": stable, "canary": canary, "rtol": 0.01, "atol": 0.0}
    return RoutingTable.from_json({"version": version, "endpoints": {"digits": endpoint}})


@pytest.fixture
def evidence() -> Any:
    found = Evidence()
    found.apply(table())
    found.tick(0.0)
    yield found
    found.comparer.close()


def only(evidence: Evidence) -> Json:
    (row,) = told(evidence)["arms"]
    return row


def told(evidence: Evidence, endpoint: str = "digits") -> Json:
    return orjson.loads(orjson.dumps(evidence.to_json(endpoint)))


def test_what_ends_is_counted_by_arm(evidence: Evidence) -> None:
    for of in (arm(3), arm(4), arm(4, "header"), arm(4, weight=50), Arm("digits", 4, "weighted", 10), None):
        evidence.ended(request(of), 200, "", 0.001, None)
    found = told(evidence)
    rows = {(row["generation"], row["traffic"], row["weight"]): row["requests"] for row in found["arms"]}
    assert rows == {(3, "weighted", 10): 1, (4, "weighted", 10): 2, (4, "header", 10): 1, (4, "weighted", 50): 1}
    assert (found["version"], found["split"]["canary"], found["pairs"]) == (7, 4, None)
    assert told(evidence, "other")["arms"] == []


def test_the_whole_of_an_arm(evidence: Evidence) -> None:
    for status, kind in (
        (200, ""), (500, "execution"), (500, "execution"), (503, "no_replica"), (504, "timeout"),
        (429, "queue_full"), (503, "loading"), (503, "overload"), (400, "invalid"), (404, "not_found"), (499, "client_gone"),
    ):  # fmt: skip
        evidence.ended(request(arm(4), fell_back=kind == "timeout"), status, kind, 0.002, None)
    assert only(evidence) == {
        "generation": 4, "traffic": "weighted", "weight": 10,
        "requests": 5, "errors": {"execution": 2, "no_replica": 1, "timeout": 1}, "fell_back": 1,
        "refused": 3, "rejected": 2, "gone": 1, "nonfinite": 0, "saturated": 0,
        "compute": {"1": {str(bucket_of(140)): 1}}, "total": {str(bucket_of(2000)): 1},
        "shared": 0, "users": 0, "users_error": 0, "users_nonfinite": 0, "users_shared": 0, "users_both": 0, "capped": False,
    }  # fmt: skip


def test_a_batch_is_one_sample_of_the_device_time(evidence: Evidence) -> None:
    for ran in [("a", 3, 500)] * 3 + [("b", 2, 500)] * 2 + [("a", 1, 90)] * 2:
        evidence.ended(request(arm(4), ran=ran), 200, "", 0.001, None)
    row = only(evidence)
    assert row["compute"] == {
        "3": {str(bucket_of(500)): 1},
        "2": {str(bucket_of(500)): 1},
        "1": {str(bucket_of(90)): 2},
    }
    assert row["requests"] == sum(row["total"].values()) == 7


def test_failures_in_a_row_are_of_the_generation(evidence: Evidence) -> None:
    for of, status in ((arm(4), 500), (arm(4, "header"), 503), (arm(3), 200), (arm(4), 400), (arm(4), 499)):
        evidence.ended(request(of), status, "x", 0.001, None)
    evidence.ended(request(arm(4, "probe")), 200, "", 0.001, None)
    assert told(evidence)["failures_in_row"] == {"4": 2, "3": 0}, "golden samples hide nothing"
    evidence.ended(request(arm(4)), 200, "", 0.001, None)
    assert told(evidence)["failures_in_row"] == {"4": 0, "3": 0}
    evidence.ended(request(arm(4, "mirror")), 500, "execution", 0.001, None)
    evidence.ended(request(arm(4)), 200, "", 0.001, None)
    assert told(evidence)["failures_in_row"] == {"4": 1, "3": 0}


def test_outputs_that_are_not_sound_count_whatever_the_answer(evidence: Evidence) -> None:
    evidence.ended(request(arm(4), flags=NONFINITE), 500, "non_finite", 0.001, None)
    evidence.ended(request(arm(4), flags=SATURATED), 200, "", 0.001, None)
    evidence.ended(request(arm(4), flags=SATURATED | NONFINITE), 200, "", 0.001, None)
    evidence.ended(request(arm(4), flags=NONFINITE), 499, "client_gone", 0.001, None)
    assert (only(evidence)["nonfinite"], only(evidence)["saturated"]) == (2, 2)


def test_a_user_counts_once(evidence: Evidence) -> None:
    for user, status, flags in (
        (1, 200, 0),
        (1, 500, 0),
        (1, 500, 0),
        (2, 200, NONFINITE),
        (2, 200, 0),
        (3, 400, 0),
        (4, 429, 0),
    ):
        evidence.ended(request(arm(4, "sticky"), user=user, flags=flags), status, "x", 0.001, None)
    row = only(evidence)
    assert [row[key] for key in ("users", "users_error", "users_nonfinite", "capped")] == [2, 1, 1, False]


def test_too_many_users_are_not_told_apart() -> None:
    evidence = Evidence(most_users=2)
    for user in (1, 2, 3, 1, 4):
        evidence.ended(request(arm(4, "sticky"), user=user), 200 if user < 3 else 500, "", 0.001, None)
    row = only(evidence)
    assert [row[key] for key in ("users", "users_error", "capped", "requests")] == [2, 0, True, 5]


def test_all_arms_share_the_room_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.serving.observe.evidence._MOST_USERS_TOGETHER", 3)
    evidence = Evidence()
    evidence.apply(table(weight=20))
    for weight in (10, 20):
        for user in (1, 2):
            evidence.ended(request(arm(4, "sticky", weight), user=user), 200, "", 0.001, None)
    assert [(row["users"], row["capped"]) for row in told(evidence)["arms"]] == [(2, False), (1, True)]
    for now in (1.5, 30.0, 63.0):
        evidence.tick(now)
    evidence.ended(request(arm(4, "sticky", 30), user=1), 200, "", 0.001, None)
    assert [(row["users"], row["capped"]) for row in told(evidence)["arms"]] == [(2, True), (1, True), (1, False)]


def test_users_of_a_weight_that_has_gone_are_let_go(evidence: Evidence) -> None:
    evidence.ended(request(arm(4, "sticky"), user=5), 200, "", 0.001, None)
    evidence.tick(10.0)
    evidence.tick(100.0)
    assert not only(evidence)["capped"], "still the canary's weight"
    evidence.apply(table(8, weight=50))
    for now in (101.0, 130.0, 163.0):
        evidence.tick(now)
    assert (only(evidence)["users"], only(evidence)["capped"]) == (1, True)
    evidence.ended(request(arm(4, "sticky"), user=6), 200, "", 0.001, None)
    assert only(evidence)["users"] == 1


def test_counts_outlive_their_split_by_a_minute(evidence: Evidence) -> None:
    evidence.ended(request(arm(3)), 200, "", 0.001, None)
    evidence.ended(request(arm(4)), 200, "", 0.001, None)
    evidence.unpaired(arm(4, "mirror"), "dropped")
    evidence.apply(table(8, split=False))
    for now in (2.0, 60.0):
        evidence.tick(now)
    assert len(told(evidence)["arms"]) == 2
    evidence.apply(table(9, stable=3, canary=5))
    for now in (62.5, 64.0, 126.0):
        evidence.tick(now)
    found = told(evidence)
    assert ([row["generation"] for row in found["arms"]], found["pairs"], found["failures_in_row"]) == (
        [3],
        None,
        {"3": 0},
    )


def scores(*rows: list[float]) -> Any:
    return [from_array("y", np.asarray(rows, np.float32))]


def test_classes_are_sampled_at_a_pace(evidence: Evidence) -> None:
    for _ in range(9):
        evidence.ended(request(arm(4)), 200, "", 0.001, scores([0, 1, 0], [0, 0, 2]))
    evidence.tick(0.05)
    evidence.ended(request(arm(4, "probe")), 200, "", 0.001, scores([1, 0, 0]))
    evidence.ended(request(arm(3)), 200, "", 0.001, [from_array("y", np.zeros((1, 1), np.float32))])
    assert told(evidence)["classes"] == {"4": {"1": 2, "2": 2}, "3": {}}


def test_pairs_are_compared_by_the_splits_tolerances(evidence: Evidence) -> None:
    stable = scores([1.0, 2.0])
    for canary, ran in (
        (scores([1.005, 2.0]), ("b", 1, 100)),
        (scores([1.02, 2.0]), ("b", 1, 180)),
        (scores([3.0, 2.0]), ("b", 2, 100)),
        (scores([1.0, float("nan")]), ("b", 1, 140)),
        (scores([1.0, 2.0, 3.0]), ("b", 1, 139)),
    ):
        evidence.paired(request(arm(3)), stable, request(arm(4, "mirror"), ran=ran), canary)
    evidence.unpaired(arm(4, "mirror"), "failed")
    evidence.unpaired(arm(4, "mirror"), "dropped")
    assert evidence.comparer.settle(20)
    found = told(evidence)["pairs"]
    assert found.pop("max_abs") == pytest.approx(2.0)
    assert found == {
        "canary": 4, "stable": 3, "n": 5, "agree": 1, "top1": 2, "flips": 2, "nonfinite": 1, "misfit": 1,
        "dropped": 1, "failed": 1, "faster": 2, "slower": 1,
    }  # fmt: skip


def test_a_flood_of_pairs_is_dropped_and_counted(evidence: Evidence) -> None:
    big = [from_array("y", np.zeros((1, 500_000), np.float32))]
    for _ in range(400):
        evidence.paired(request(arm(3)), big, request(arm(4, "mirror")), big)
    evidence.comparer.close()
    found = told(evidence)["pairs"]
    assert found["dropped"] > 300
    assert found["n"] + found["dropped"] <= 400


def test_prometheus_sees_sums_over_weights(evidence: Evidence) -> None:
    assert write(canary_families("0", evidence)) == b""
    for weight, status in ((5, 200), (10, 200), (10, 500)):
        evidence.ended(
            request(arm(4, weight=weight), flags=1, fell_back=status == 500), status, "execution", 0.001, None
        )
    evidence.paired(request(arm(3)), scores([1.0]), request(arm(4, "mirror")), scores([1.0]))
    evidence.unpaired(arm(4, "mirror"), "dropped")
    assert evidence.comparer.settle(20)
    lines = write(canary_families("0", evidence)).decode().splitlines()
    of = 'router="0",endpoint="digits",generation="4"'
    for line in (
        f'orchestrate_canary_requests_total{{{of},traffic="weighted",result="ok"}} 2',
        f'orchestrate_canary_requests_total{{{of},traffic="weighted",result="error"}} 1',
        f'orchestrate_canary_odd_outputs_total{{{of},traffic="weighted",kind="nonfinite"}} 3',
        f'orchestrate_canary_fallbacks_total{{{of},traffic="weighted"}} 1',
        f'orchestrate_canary_pairs_total{{{of},result="alike"}} 1',
        f'orchestrate_canary_lost_copies_total{{{of},reason="dropped"}} 1',
    ):
        assert line in lines


def _row(evidence: Evidence) -> int:
    return told(evidence)["failures_in_row"]["4"]


def test_who_names_a_version_neither_ends_a_rollout_nor_hides_that_it_must_end(evidence: Evidence) -> None:
    for _ in range(30):
        evidence.ended(request(arm(4, "version")), 500, "execution_failed", 0.01, None)
    assert _row(evidence) == 0
    for _ in range(5):
        evidence.ended(request(arm(4), fell_back=True), 500, "execution_failed", 0.01, None)
        evidence.ended(request(arm(4, "version")), 200, "", 0.01, None)
    assert _row(evidence) == 5


def test_a_request_that_stable_fails_as_well_is_no_failure_in_a_row_of_the_canary(evidence: Evidence) -> None:
    evidence.ended(request(arm(4), fell_back=True), 500, "execution_failed", 0.01, None)
    for _ in range(30):
        evidence.ended(request(arm(3, "fallback")), 500, "execution_failed", 0.01, None)
        both = request(arm(4), fell_back=True)
        both.shared = True
        evidence.ended(both, 500, "execution_failed", 0.01, None)
    assert _row(evidence) == 1
    rows = {(row["generation"], row["traffic"]): (row["errors"], row["shared"]) for row in told(evidence)["arms"]}
    assert rows == {(4, "weighted"): ({"execution_failed": 31}, 30), (3, "fallback"): ({"execution_failed": 30}, 0)}


def test_a_user_counts_once_for_shared_failures_and_once_for_both_kinds() -> None:
    users = Users(10, Room(10))
    for user, shared in ((1, True), (1, True), (2, False), (3, True), (3, False), (4, False), (4, True), (3, True)):
        users.saw(user, error=True, nonfinite=False, shared=shared)
    users.saw(5, error=False, nonfinite=False)
    assert (users.count, users.error, users.shared, users.both) == (5, 4, 3, 2)
    assert users.error - users.shared + users.both == 3, "users that the canary alone has failed"
