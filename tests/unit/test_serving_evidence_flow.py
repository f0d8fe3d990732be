"""Requests through a dispatcher and its split, down to what is counted of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trial_world import TrialWorld, Watcher

from orchestrator.serving.dispatch.lanes import Replica
from orchestrator.serving.link.frames import Frame
from orchestrator.serving.link.wire import NONFINITE
from orchestrator.serving.observe.arm_counts import result_of
from orchestrator.serving.observe.evidence import Evidence
from orchestrator.serving.serve_settings import ServeSettings


@dataclass
class Both(Watcher):
    """Counts, and writes down what it was told to count."""

    evidence: Evidence = field(default_factory=Evidence)

    def ended(self, request: Any, status: int, kind: str, total_s: float, outputs: Any) -> None:
        super().ended(request, status, kind, total_s, outputs)
        self.evidence.ended(request, status, kind, total_s, outputs)

    def paired(self, stable: Any, stable_outputs: Any, canary: Any, canary_outputs: Any) -> None:
        super().paired(stable, stable_outputs, canary, canary_outputs)
        self.evidence.paired(stable, stable_outputs, canary, canary_outputs)

    def unpaired(self, arm: Any, why: Any) -> None:
        super().unpaired(arm, why)
        self.evidence.unpaired(arm, why)


class CountedWorld(TrialWorld):
    """Replies of generation 2 flag the first request of each batch, where `odd` is set."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.both = self.watcher = self.dispatcher.witness = Both()
        self.odd = False
        self.flagged = 0

    def put(self, weights: Mapping[int, int], split: Mapping[str, Any] | None = None, **states: str) -> None:
        super().put(weights, split, **states)
        self.both.evidence.apply(self.routes.table)

    def _reply(self, replica: Replica, answer: Frame) -> None:
        count = len(answer.head["status"])  # type: ignore[arg-type]
        if self.odd and replica.name == "r2" and replica.stage == "model":
            self.flagged += 1
            answer = replace(answer, head={**answer.head, "flags": [NONFINITE] + [0] * (count - 1)})
        super()._reply(replica, answer)

    def told(self) -> dict[str, Any]:
        return self.both.evidence.to_json("digits")


def world(weight: int = 50, **split: Any) -> CountedWorld:
    made = CountedWorld()
    made.put({1: 100 - weight, 2: weight}, split)
    made.serve(1)
    made.serve(2)
    return made


def arms(one: CountedWorld, key: str) -> dict[tuple[int, str], Any]:
    return {(row["generation"], row["traffic"]): row[key] for row in one.told()["arms"]}


@pytest.mark.parametrize("staged", [False, True])
def test_of_a_batch_only_the_odd_request_is_counted(staged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if staged:
        settings_ = ServeSettings(preprocess="code:before")
        monkeypatch.setattr("orchestrator.serving.router.routes.read_serve_settings", lambda _: settings_)
    one = world()
    if staged:
        for number in (1, 2):
            one.serve(number, stage="preprocess")
    one.odd = True
    one.crowd(100)
    assert 0 < one.flagged < 50, "requests of the canary ran together"
    assert arms(one, "nonfinite") == {(1, "weighted"): 0, (2, "weighted"): one.flagged}
    assert arms(one, "requests") == {(1, "weighted"): 50, (2, "weighted"): 50}
    one.odd = False
    one.crowd(100)
    assert arms(one, "nonfinite")[2, "weighted"] == one.flagged


def test_device_time_is_of_batches_and_total_of_requests() -> None:
    one = world()
    one.crowd(100)
    batches = Counter(generation for generation, _ in one.replies)
    for (generation, _), compute in arms(one, "compute").items():
        counted = sum(sum(times.values()) for times in compute.values())
        assert 0 < counted <= batches[generation] < 50
    assert {sum(total.values()) for total in arms(one, "total").values()} == {50}


def test_a_fall_back_is_counted_on_both_sides() -> None:
    one = world()
    one.modes[2] = "execution"
    one.crowd(100)
    assert arms(one, "errors") == {(1, "weighted"): {}, (2, "weighted"): {"execution": 50}, (1, "fallback"): {}}
    assert arms(one, "fell_back")[2, "weighted"] == 50
    assert one.told()["failures_in_row"] == {"1": 0, "2": 50}


def totals(one: CountedWorld) -> tuple[int, int, int]:
    """Errors of the canary, those that stable shares, failures in a row."""
    row = next(row for row in one.told()["arms"] if row["generation"] == 2)
    return sum(row["errors"].values()), row["shared"], one.told()["failures_in_row"]["2"]


@pytest.mark.parametrize("staged", [False, True])
def test_what_stable_fails_as_well_is_shared(staged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if staged:
        settings_ = ServeSettings(preprocess="code:before")
        monkeypatch.setattr("orchestrator.serving.router.routes.read_serve_settings", lambda _: settings_)
    one = world(100, sticky="x-user")
    if staged:
        for number in (1, 2):
            one.serve(number, stage="preprocess")
    one.modes = {1: "execution", 2: "execution"}
    one.crowd(30, {"x-user": "mallory"})
    assert totals(one) == (30, 30, 0)
    one.modes = {2: "execution"}
    one.crowd(3, {"x-user": "ada"})
    assert totals(one) == (33, 30, 3)
    row = next(row for row in one.told()["arms"] if row["generation"] == 2)
    assert (row["users"], row["users_error"], row["users_shared"], row["users_both"]) == (2, 2, 1, 0)
    one.modes = {1: "rejected", 2: "execution"}
    one.crowd(4, {"x-user": "mallory"})
    assert totals(one) == (37, 34, 3), "what stable calls the client's mistake is no proof against the canary"


def test_an_error_of_the_canary_is_counted_when_stable_has_ended() -> None:
    one = world(100)
    one.modes = {1: "silent", 2: "execution"}
    people = [one.person(patience_s=4.0), one.person(), one.person(patience_s=4.0)]
    one.wait(0.2)
    assert one.told()["arms"] == [], "neither the error nor whether it is shared"
    people[1].gone = True
    one.dispatcher.lost(next(r for r in one.dispatcher.replicas() if r.name == "r1"), one.now)
    one.wait(0.1)
    assert totals(one) == (1, 1, 0), "nobody knows how stable would have ended"
    one.wait(5.0)
    assert [person.status for person in people] == [504, 499, 504]
    assert totals(one) == (3, 1, 2), "the canary has used their time"


def test_stable_that_is_not_there_says_nothing_of_the_request() -> None:
    one = CountedWorld()
    one.put({1: 0, 2: 100}, {})
    one.serve(2)
    one.modes[2] = "execution"
    one.wait(11.0)
    (person,) = one.crowd(1)
    assert person.status == 503
    assert totals(one) == (1, 0, 1)


def test_nothing_is_counted_twice_where_stable_has_no_room() -> None:
    one = CountedWorld(queue_limit=4)
    one.put({1: 0, 2: 100}, {})
    one.serve(1, depth=1)
    one.serve(2)
    one.modes = {1: "silent", 2: "execution"}
    one.person(version=1)
    one.run(0.01)
    for _ in range(4):
        one.person(version=1)
    people = [one.person() for _ in range(3)]
    one.run(0.2)
    assert [person.status for person in people] == [429] * 3
    assert totals(one) == (3, 0, 3)


def outcomes(rows: Sequence[tuple[int, str, int, int, str, bool]]) -> Counter[tuple[Any, ...]]:
    return Counter((g, traffic, weight, result_of(status, kind)) for g, traffic, weight, status, kind, _ in rows)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_nothing_is_lost_and_nothing_twice(data: Any) -> None:
    one = world(sticky="x-user", mirror=50)
    canary = next(lane for lane in one.dispatcher.lanes if lane.generation.generation == 2).replicas[0]
    for step in data.draw(st.lists(st.sampled_from("aaaeeowtkv"), max_size=25)):
        if step == "a":
            user = data.draw(st.sampled_from(["", "ada", "bob", "cleo"]))
            for _ in range(5):
                one.person({"x-user": user} if user else {})
        elif step == "v":
            one.person(version=data.draw(st.sampled_from([1, 2])), probe=data.draw(st.booleans()))
        elif step in "eo":
            one.modes[2] = "execution" if step == "e" else "ok"
        elif step == "w":
            one.wait(0.05)
        elif step == "t":
            weight = data.draw(st.sampled_from([0, 10, 50, 100]))
            one.put({1: 100 - weight, 2: weight}, {"sticky": "x-user", "mirror": 50})
        elif not canary.draining:
            one.dispatcher.lost(canary, one.now)
    one.wait(1.0)
    evidence, both = one.both.evidence, one.both
    counted = {(*counts.arm[1:], name): n for counts in evidence.arms() for name, n in counts.results.items() if n}
    assert counted == dict(outcomes(both.rows))
    assert sum(counts.fell_back for counts in evidence.arms()) == sum(row[5] for row in both.rows)
    assert evidence.comparer.settle(20)
    pairs = one.told()["pairs"]
    lonely = Counter(both.lonely)
    if pairs is not None:
        assert (pairs["n"], pairs["misfit"], pairs["agree"]) == (len(both.pairs), 0, 0)
        assert (pairs["dropped"], pairs["failed"]) == (lonely["dropped"], lonely["failed"])
    evidence.comparer.close()
