"""The pure decision of how many slots a pool holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.pool import ScaleRule
from orchestrator.cluster.scaling import ScaleState, decide, first_state, loads

RULE = ScaleRule(1, 4, target_queue=4.0, up_after_s=5.0, down_after_s=60.0)
rules = st.builds(
    lambda low, more, queue, up, down: ScaleRule(low, low + more, queue, up, down),
    st.integers(1, 8),
    st.integers(0, 8),
    st.floats(0.1, 50),
    st.floats(0.1, 30),
    st.floats(0.1, 300),
)
steps = st.lists(st.tuples(st.integers(0, 500), st.floats(0.01, 20)), max_size=60)


def walk(rule: ScaleRule, what: list[tuple[int, float]]) -> list[tuple[float, int, ScaleState]]:
    state, now, found = first_state(rule), 0.0, list[tuple[float, int, ScaleState]]()
    for load, pause in what:
        now += pause
        state = decide(rule, state, load, now)
        found.append((now, load, state))
    return found


def test_a_burst_is_waited_out_and_a_lasting_load_gets_all_it_needs_at_once() -> None:
    assert [s.target for _, _, s in walk(RULE, [(16, 1.0)] * 5 + [(0, 1.0)])] == [1] * 6
    assert [s.target for _, _, s in walk(RULE, [(16, 1.0)] * 6)] == [1, 1, 1, 1, 1, 4]


def test_slots_go_one_by_one_and_not_while_the_rest_would_be_full() -> None:
    full = [(16, 5.0), (16, 5.0)]
    down = [s.target for _, _, s in walk(RULE, full + [(0, 30.0)] * 7)]
    assert down == [1, 4, 4, 4, 3, 3, 2, 2, 1]
    assert {s.target for _, _, s in walk(RULE, full + [(10, 60.0)] * 5)[1:]} == {4}, (
        "3 slots would hold 12, 0.8 of it is less"
    )


@given(rules, steps)
def test_never_out_of_bounds_and_down_by_one_at_most(rule: ScaleRule, what: list[tuple[int, float]]) -> None:
    before = rule.min_slots
    for _, _, state in walk(rule, what):
        assert rule.min_slots <= state.target <= rule.max_slots
        assert state.target >= before - 1
        before = state.target


@given(rules, steps)
def test_every_change_was_long_wanted(rule: ScaleRule, what: list[tuple[int, float]]) -> None:
    """Between two changes lies the whole time that the rule asks, each moment of it calling for the change."""
    history: list[tuple[float, int, int]] = []
    before = rule.min_slots
    for now, load, state in walk(rule, what):
        history.append((now, load, before))
        if state.target > before:
            assert all(
                load_then > rule.target_queue * before for at, load_then, _ in history if at > now - rule.up_after_s
            )
        if state.target < before:
            window = [row for row in history if row[0] > now - rule.down_after_s + 1e-6]
            assert all(load_then <= rule.target_queue * (before - 1) for _, load_then, _ in window)
        before = state.target


@given(rules, st.integers(0, 500))
def test_a_steady_load_comes_to_rest(rule: ScaleRule, load: int) -> None:
    pause = max(rule.up_after_s, rule.down_after_s)
    end = [s.target for _, _, s in walk(rule, [(load, pause)] * 40)]
    assert len(set(end[-4:])) == 1
    assert end[-1] == rule.max_slots or load <= end[-1] * rule.target_queue


def test_the_load_of_a_pool_is_what_waits_and_runs_of_its_endpoints() -> None:
    rows = [
        {"endpoint": "a", "queued": 3, "in_flight": 2},
        {"endpoint": "b", "queued": 1, "in_flight": 0},
        {"endpoint": "gone", "queued": 9, "in_flight": 9},
    ]
    assert loads({"generations": rows}, {"a": "edge", "b": "edge", "c": "other"}) == {"edge": 6}
