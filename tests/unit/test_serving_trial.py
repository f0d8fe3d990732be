"""A generation on trial, without processes: who gets it, what its failures cost users, what is counted, and what copies cost."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trial_world import Person, TrialWorld

from orchestrator.serving.errors import RequestError
from orchestrator.serving.router.mirror import MOST_RUNNING, MOST_WAITING, WAIT_S
from orchestrator.serving.serve_settings import ServeSettings

HEADERS = [
    {"name": "x-team", "how": "exact", "value": "qa"},
    {"name": "x-build", "how": "prefix", "value": "next-"},
    {"name": "x-id", "how": "regex", "value": "[0-9]{3}"},
]


def world(canary: int = 10, **split: Any) -> TrialWorld:
    made = TrialWorld()
    made.put({1: 100 - canary, 2: canary}, split)
    made.serve(1)
    made.serve(2)
    return made


def generations(people: list[Person]) -> Counter[int]:
    assert all(person.status == 200 and person.value == person.generation for person in people)
    return Counter(person.generation for person in people)


# --- the choice ---


@pytest.mark.parametrize("weight", [0, 1, 37, 100])
def test_blocks_are_exact(weight: int) -> None:
    one = world(weight)
    for _ in range(3):
        assert generations(one.crowd(100))[2] == weight
    assert one.watcher.count()[2, "weighted"] == 3 * weight
    assert {row[2] for row in one.watcher.rows} == {weight}


@pytest.mark.parametrize(
    ("headers", "canary"),
    [
        ({"x-team": "qa"}, True),
        ({"x-team": "qa2"}, False),
        ({"x-build": "next-17"}, True),
        ({"x-build": "last"}, False),
        ({"x-id": "123"}, True),
        ({"x-id": "1234"}, False),
        ({"x-other": "qa"}, False),
    ],
)
def test_header_routes(headers: dict[str, str], canary: bool) -> None:
    one = world(0, headers=HEADERS)
    (person,) = one.crowd(1, headers)
    assert person.generation == (2 if canary else 1)
    assert one.watcher.count() == {(2, "header") if canary else (1, "weighted"): 1}


def test_a_version_beats_a_header_beats_a_sticky_key_beats_blocks() -> None:
    one = world(0, headers=HEADERS, sticky="x-user")
    both = {"x-team": "qa", "x-user": "ada"}
    people = [one.person(both, version=1), one.person(both), one.person({"x-user": "ada"}), one.person()]
    one.wait(1)
    assert [person.generation for person in people] == [1, 2, 1, 1]
    assert Counter(one.watcher.count()) == {(1, "version"): 1, (2, "header"): 1, (1, "sticky"): 1, (1, "weighted"): 1}
    assert sum(user >= 0 for user in one.watcher.users) == 1


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=2, max_size=4), st.integers(0, 1 << 30))
def test_a_growing_weight_takes_no_user_back(weights: list[int], seed: int) -> None:
    one, before = world(0, sticky="x-user"), set[str]()
    other = world(0, sticky="x-user")
    for weight in sorted(weights):
        for each in (one, other):
            each.put({1: 100 - weight, 2: weight}, {"sticky": "x-user"})
        people = {f"{seed}-{i}": one.person({"x-user": f"{seed}-{i}"}) for i in range(30)}
        again = {name: other.person({"x-user": name}) for name in people}
        one.wait(0.2)
        other.wait(0.2)
        found = {name for name, person in people.items() if person.generation == 2}
        assert found == {name for name, person in again.items() if person.generation == 2}, "two routers agree"
        assert before <= found
        before = found


def test_probes_and_versions_are_counted_apart() -> None:
    one = world(50)
    for number in (1, 2):
        one.person(version=number, probe=True)
        one.person(version=number)
    one.wait(1)
    assert one.watcher.count() == {(n, traffic): 1 for n in (1, 2) for traffic in ("probe", "version")}


def test_probes_take_no_users_place() -> None:
    one = world(30)
    people = list[Person]()
    for _ in range(100):
        one.person(probe=True)
        people.append(one.person())
    one.wait(1)
    assert generations(people) == {1: 70, 2: 30}
    assert one.watcher.count()[1, "probe"] == 100


def test_without_a_split_nothing_is_counted() -> None:
    one = world(10)
    one.put({1: 90, 2: 10})
    assert generations(one.crowd(100)) == {1: 90, 2: 10}
    assert one.watcher.rows == []


def test_no_weights_is_no_replica_but_headers_lead_on() -> None:
    one = world(10, headers=HEADERS)
    one.put({1: 0, 2: 0}, {"headers": HEADERS})
    assert one.person().status == 503
    assert generations(one.crowd(1, {"x-team": "qa"})) == {2: 1}


def test_a_draining_canary_gets_no_header_routes() -> None:
    one = world(10, headers=HEADERS)
    one.put({1: 100, 2: 0}, {"headers": HEADERS}, g2="draining")
    assert generations(one.crowd(5, {"x-team": "qa"})) == {1: 5}


# --- what the canary fails, stable answers ---


def test_failed_executions_are_answered_by_stable_and_counted() -> None:
    one = world(30)
    one.modes[2] = "execution"
    assert generations(one.crowd(100)) == {1: 100}
    failed = Counter(row for row in one.watcher.rows if row[0] == 2)
    assert failed == {(2, "weighted", 30, 500, "execution", True): 30}
    assert one.watcher.count() == {(1, "weighted"): 70, (2, "weighted"): 30, (1, "fallback"): 30}
    events = one.dispatcher.recorder.events.read(0, 1000)["events"]
    assert Counter((e["generation"], e["status"]) for e in events) == {(1, 200): 100, (2, 500): 30}  # type: ignore[attr-defined]


def test_an_answer_that_the_clients_protocol_cannot_carry() -> None:
    class Picky(Person):
        def answer(self, request: Any, outputs: Any) -> None:
            if request.lane.version == "2":
                raise RequestError("NaN", status=500, kind="non_finite")
            super().answer(request, outputs)

    one = world(100)
    person = one.person(of=Picky)
    one.wait(0.2)
    assert generations([person]) == {1: 1}
    assert one.watcher.rows[0][3:] == (500, "non_finite", True)


def test_without_a_replica_stable_answers_at_once() -> None:
    one = TrialWorld()
    one.put({1: 50, 2: 50}, {})
    one.serve(1)
    people = [one.person() for _ in range(100)]
    one.run(0.1)
    assert generations(people) == {1: 100}
    assert {row[3:] for row in one.watcher.rows if row[0] == 2} == {(503, "no_replica", True)}


def test_a_replica_that_dies_with_requests() -> None:
    one = TrialWorld()
    one.put({1: 0, 2: 100}, {})
    one.serve(1)
    canary = one.serve(2, depth=1)
    one.modes[2] = "silent"
    people = [one.person() for _ in range(20)]
    one.run(0.01)
    assert not any(person.done for person in people)
    one.dispatcher.lost(canary, one.now)
    one.wait(0.2)
    assert generations(people) == {1: 20}
    assert Counter(row[4] for row in one.watcher.rows if row[0] == 2) == {"replica_lost": 8, "no_replica": 12}


def test_two_replicas_that_die_with_a_request() -> None:
    one = TrialWorld()
    one.put({1: 0, 2: 100}, {})
    one.serve(1)
    canaries = [one.serve(2, slot=name) for name in "ab"]
    one.modes[2] = "silent"
    person = one.person()
    one.run(0.01)
    for canary in sorted(canaries, key=lambda replica: not replica.batches):
        one.dispatcher.lost(canary, one.now)
    one.wait(0.2)
    assert generations([person]) == {1: 1}
    assert [row[4] for row in one.watcher.rows] == ["replica_lost", ""]


def test_a_full_queue() -> None:
    one = TrialWorld(queue_limit=10)
    one.put({1: 0, 2: 100}, {})
    one.serve(1, cost_s=1e-6)
    one.serve(2, depth=1)
    one.modes[2] = "silent"
    people = [one.person() for _ in range(19)]
    one.wait(0.2)
    assert sum(person.done for person in people) >= 1
    assert {person.generation for person in people if person.done} == {1}
    assert Counter(row[4] for row in one.watcher.rows if row[0] == 2)["queue_full"] >= 1


def test_half_of_the_patience_is_for_the_canarys_queue() -> None:
    one = TrialWorld()
    one.put({1: 0, 2: 100}, {})
    one.serve(1)
    one.serve(2, depth=1)
    one.modes[2] = "silent"
    busy = [one.person() for _ in range(8)]
    person = one.person(patience_s=4.0)
    one.wait(1.9)
    assert not person.done
    one.wait(0.2)
    assert generations([person]) == {1: 1}
    assert one.watcher.rows[0][3:] == (503, "overload", True)
    assert not any(each.done for each in busy), "what runs may take its time"


def test_a_replica_that_hangs_is_given_up_while_there_is_time_for_stable() -> None:
    one = world(100)
    one.modes[2] = "silent"
    patient, hasty = one.person(patience_s=10.0), one.person(patience_s=4.0)
    one.wait(4.1)
    assert hasty.status == 504, "too short to be divided"
    one.wait(3.8)
    assert not patient.done
    one.wait(0.3)
    assert generations([patient]) == {1: 1}
    assert one.watcher.rows[1][3:] == (504, "timeout", True)


def test_an_endpoint_is_ready_while_stable_is() -> None:
    one = TrialWorld()
    one.put({1: 50, 2: 50}, {})
    assert not one.routes.ready()
    one.serve(1)
    assert one.routes.ready()
    assert not one.routes.endpoints["digits"].ready(2)
    one.put({1: 50, 2: 50})
    assert not one.routes.ready()


def test_other_inputs_than_stables_are_the_canarys_fault() -> None:
    one = TrialWorld()
    one.put({1: 0, 2: 100}, {})
    one.serve(1)
    one.serve(2, width=2)
    assert generations(one.crowd(3)) == {1: 3}
    assert {row[3:] for row in one.watcher.rows if row[0] == 2} == {(500, "incompatible", True)}
    (right,) = [one.person(width=2)]
    one.wait(0.2)
    assert right.generation == 2
    wrong = one.person(width=3)
    assert wrong.status == 400
    assert one.watcher.rows[-1][3:] == (400, "invalid", False)


def test_what_the_client_did_wrong_is_not_tried_again() -> None:
    one = world(100)
    assert one.person(width=3).status == 400
    assert [row[3:] for row in one.watcher.rows] == [(400, "invalid", False)]
    assert one.replies == []


def test_an_input_that_the_canary_alone_rejects_is_its_failure() -> None:
    one = world(100)
    one.modes[2] = "rejected"
    assert generations(one.crowd(5)) == {1: 5}
    assert Counter(row for row in one.watcher.rows if row[0] == 2) == {
        (2, "weighted", 100, 500, "wrongly_rejected", True): 5
    }
    assert one.watcher.count()[1, "fallback"] == 5


def test_an_input_that_both_reject_is_the_clients_mistake() -> None:
    one = world(100)
    one.modes = {1: "rejected", 2: "rejected"}
    assert [person.status for person in one.crowd(5)] == [400] * 5
    assert Counter(row[3:] for row in one.watcher.rows if row[0] == 2) == {(400, "rejected", False): 5}
    assert one.person(version=2).status == 0
    one.wait(0.1)
    assert one.watcher.rows[-1] == (2, "version", 100, 400, "rejected", False)


def test_versions_and_probes_never_fall_back() -> None:
    one = world(100)
    one.modes[2] = "execution"
    people = [one.person(version=2), one.person(probe=True)]
    one.wait(0.2)
    assert [person.status for person in people] == [500, 500]
    assert one.watcher.count() == {(2, "version"): 1, (2, "probe"): 1}


def test_stable_failing_too_is_what_the_client_sees() -> None:
    one = world(100)
    one.modes = {1: "execution", 2: "execution"}
    (person,) = one.crowd(1)
    assert person.error is not None
    assert person.error.message == "execution of 1"


def test_generations_with_stages_fall_back_and_are_copied_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    staged = ServeSettings(preprocess="code:before")
    monkeypatch.setattr("orchestrator.serving.router.routes.read_serve_settings", lambda _: staged)
    one = world(50, mirror=100)
    assert {person.generation for person in one.crowd(100)} == {0}, "no preprocessing yet: 503"
    one.watcher.rows.clear()
    for number in (1, 2):
        one.serve(number, stage="preprocess")
    assert generations(one.crowd(100)) == {1: 50, 2: 50}
    assert one.watcher.count() == {(1, "weighted"): 50, (2, "weighted"): 50, (2, "mirror"): 50}
    assert one.watcher.pairs == [(1, 1.0, 2, 2.0)] * 50
    for mode, row in (("execution", (500, "execution", True)), ("rejected", (500, "wrongly_rejected", True))):
        one.watcher.rows.clear()
        one.modes[2] = mode
        assert generations(one.crowd(100)) == {1: 100}
        assert Counter(row[3:] for row in one.watcher.rows if row[:2] == (2, "weighted")) == {row: 50}
        assert one.watcher.count()[1, "fallback"] == 50


def test_nobody_is_asked_twice_for_a_client_that_has_gone_or_whose_time_is_over() -> None:
    one = world(100)
    one.modes[2] = "silent"
    gone, late = one.person(), one.person(patience_s=1.0)
    one.run(0.01)
    gone.gone = True
    one.wait(1.2)
    assert late.status == 504
    assert one.watcher.count()[1, "fallback"] == 0


def test_a_request_ends_on_the_generation_it_was_dealt_to() -> None:
    one = world(100)
    people = [one.person() for _ in range(4)]
    one.put({1: 100, 2: 0}, {})
    later = [one.person() for _ in range(4)]
    one.put({1: 100}, None)  # the canary leaves the table with requests on it
    one.wait(0.2)
    assert generations(people) == {2: 4}
    assert generations(later) == {1: 4}


def test_a_stable_that_has_left_gives_the_canarys_error() -> None:
    one = world(100)
    one.modes[2] = "silent"
    person = one.person()
    one.run(0.01)
    one.put({2: 100}, None)
    (replica,) = [r for r in one.dispatcher.replicas() if r.name == "r2"]
    one.dispatcher.lost(replica, one.now)
    one.wait(0.2)
    assert person.status == 503


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_happens_to_the_canary_users_get_answers(data: Any) -> None:
    one = TrialWorld()
    one.put({1: 50, 2: 50}, {"sticky": "x-user", "mirror": 30})
    one.serve(1)
    canary, people = one.serve(2), list[Person]()
    for step in data.draw(st.lists(st.sampled_from("aaawweslrt"), max_size=30)):
        if step == "a":
            user = data.draw(st.sampled_from(["", "ada", "bob", "cleo"]))
            people += [one.person({"x-user": user} if user else {}) for _ in range(5)]
        elif step == "w":
            one.run(data.draw(st.sampled_from([0.0005, 0.002, 0.06])))
            one.dispatcher.sweep(one.now)
        elif step == "t":
            weight = data.draw(st.sampled_from([0, 10, 50, 100]))
            one.put({1: 100 - weight, 2: weight}, {"sticky": "x-user", "mirror": data.draw(st.sampled_from([0, 50]))})
        elif step in "es":
            one.modes[2] = data.draw(st.sampled_from(["execution", "rejected"])) if step == "e" else "ok"
        elif step == "l" and not canary.draining:
            one.dispatcher.lost(canary, one.now)
        elif step == "r" and canary.draining:
            canary = one.serve(2)
    one.wait(1.0)
    assert all(person.status == 200 and person.value == person.generation for person in people)
    users = [row for row in one.watcher.rows if row[1] not in ("mirror", "fallback")]
    assert len(users) == len(people)
    assert sum(row[5] for row in users) == one.watcher.count()[1, "fallback"]


# --- copies ---


def test_a_mirror_compares_and_users_see_stable_alone() -> None:
    one = TrialWorld()
    one.put({1: 100, 2: 0}, {"mirror": 20})
    one.serve(1)
    one.serve(2, cost_s=0.5)
    people = list[Person]()
    for _ in range(100):
        people.append(one.person())
        one.wait(0.05)
    one.wait(1.0)
    assert generations(people) == {1: 100}
    assert one.watcher.pairs == [(1, 1.0, 2, 2.0)] * 20
    assert one.watcher.lonely == []
    assert one.watcher.count() == {(1, "weighted"): 100, (2, "mirror"): 20}
    events = one.dispatcher.recorder.events.read(0, 1000)["events"]
    assert Counter((e["generation"], e["synthetic"]) for e in events) == {(1, False): 100, (2, True): 20}  # type: ignore[attr-defined]


def test_copies_begin_after_their_users_are_answered() -> None:
    one = TrialWorld()
    one.put({1: 100, 2: 0}, {"mirror": 100})
    one.serve(1, depth=1)
    one.serve(2)
    people = [one.person() for _ in range(24)]
    one.run(0.0015)
    assert sum(person.done for person in people) == 8
    assert one.replies == [(1, 8), (1, 8)], "users still wait"
    one.wait(1)
    assert len(one.watcher.pairs) == 24


def test_copies_are_bounded_and_dropped_when_the_canary_is_slow() -> None:
    one = TrialWorld()
    one.put({1: 100, 2: 0}, {"mirror": 100})
    one.serve(1)
    one.serve(2)
    one.modes[2] = "silent"
    assert generations(one.crowd(1000)) == {1: 1000}
    trial = one.routes.endpoints["digits"].trial
    assert trial is not None
    running = trial.canary.in_flight + len(trial.canary.queue)
    assert running == MOST_RUNNING
    assert 0 < trial.mirror.waiting <= MOST_WAITING
    assert one.watcher.lonely == ["dropped"] * (1000 - trial.mirror.waiting - running)
    one.wait(WAIT_S + 0.1)
    assert trial.mirror.waiting == 0


@pytest.mark.parametrize("mode", ["execution", "rejected"])
def test_copies_that_fail_are_counted_and_nobody_notices(mode: str) -> None:
    one = TrialWorld()
    one.put({1: 100, 2: 0}, {"mirror": 100})
    one.serve(1)
    one.serve(2)
    one.modes[2] = mode
    assert generations(one.crowd(8)) == {1: 8}
    assert one.watcher.lonely == ["failed"] * 8
    assert one.watcher.pairs == []


def test_copies_without_a_canary_are_dropped_and_those_of_an_old_table_too() -> None:
    one = TrialWorld()
    one.put({1: 100, 2: 0}, {"mirror": 100})
    one.serve(1)
    one.crowd(5)
    assert one.watcher.lonely == ["dropped"] * 5
    one.serve(2)
    one.modes[2] = "silent"
    one.crowd(MOST_RUNNING + 3)
    one.put({1: 100, 2: 0}, None)
    assert one.watcher.lonely == ["dropped"] * 8
    one.crowd(3)
    assert one.watcher.count()[1, "weighted"] == 5 + MOST_RUNNING + 3


def test_copies_of_large_requests_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.serving.router.mirror.MOST_BYTES", 100)
    one = TrialWorld()
    one.put({1: 100, 2: 0}, {"mirror": 100})
    one.serve(1)
    one.serve(2)
    assert generations(one.crowd(8)) == {1: 8}
    assert Counter(one.watcher.lonely) == {"dropped": 6}  # each is 4 bytes, and keeps the answers of eight
    assert len(one.watcher.pairs) == 2


def test_probes_versions_and_canary_requests_are_not_copied() -> None:
    one = TrialWorld()
    one.put({1: 0, 2: 100}, {"mirror": 100})
    one.serve(1)
    one.serve(2)
    one.crowd(5)
    one.person(version=1)
    one.person(version=1, probe=True)
    one.wait(0.5)
    assert one.watcher.pairs == []
