"""One alarm for many models, and who is to blame when their process has ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.serving.replica import watch as watching
from orchestrator.serving.replica.blame import HOLDS, IDLE, RUNS, Blame
from orchestrator.serving.replica.watch import Watch


class Clock:
    """Time, and the alarm of the process."""

    def __init__(self) -> None:
        self.now, self.due = 100.0, 0.0

    def monotonic(self) -> float:
        return self.now

    def setitimer(self, _which: int, seconds: float) -> None:
        self.due = self.now + seconds if seconds else 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(watching, "time", found)
    monkeypatch.setattr(watching.signal, "setitimer", found.setitimer)
    return found


@pytest.fixture
def blame() -> Iterator[Blame]:
    file = Blame.make()
    yield Blame(file)
    os.close(file)


def test_the_alarm_is_that_of_the_member_that_is_due_first(clock: Clock, blame: Blame) -> None:
    watch = Watch(blame)
    watch.on(1, 60)
    clock.now += 1
    watch.on(2, 10)
    assert clock.due == pytest.approx(111)
    assert blame.suspects(-signal.SIGALRM, {1, 2}) == {2}
    watch.off(2)
    assert clock.due == pytest.approx(160)
    assert blame.suspects(-signal.SIGALRM, {1, 2}) == {1}
    watch.off(1)
    assert clock.due == 0


def test_who_answers_does_not_hide_who_hangs(clock: Clock) -> None:
    watch = Watch()
    watch.on(1, 60)
    for _ in range(50):
        watch.on(2, 60)
        clock.now += 1
    assert clock.due == pytest.approx(160)


def test_who_computes_for_long_is_not_held_against_the_others(clock: Clock, blame: Blame) -> None:
    watch = Watch(blame)
    watch.on(1, 60)
    for member in (2, 3):
        with watch.running(member):
            watch.on(member, 60)
            assert clock.due == pytest.approx(clock.now + 60)
            assert blame.suspects(-signal.SIGALRM, {1, 2, 3}) == {member}
            clock.now += 50
            watch.off(member)
            assert clock.due == 0, "its call is over, and nobody else can get on"
    assert clock.due == pytest.approx(260)


def test_a_load_may_take_longer_and_holds_up_the_others(clock: Clock, blame: Blame) -> None:
    watch = Watch(blame)
    watch.on(1, 60)
    with watch.loading(2, 1800):
        assert clock.due == pytest.approx(1900)
        assert blame.suspects(-signal.SIGALRM, {1, 2}) == {2}
        clock.now += 1000
    assert clock.due == pytest.approx(1160)


@given(
    st.dictionaries(st.integers(0, 4095), st.sampled_from([IDLE, HOLDS, RUNS]), max_size=20),
    st.sampled_from([-9, -11, 1]),
)
def test_suspects_are_who_ran_else_who_held_a_batch(noted: dict[int, int], code: int) -> None:
    file = Blame.make()
    try:
        blame = Blame(file)
        for member, what in noted.items():
            blame.note(member, what)
        seen = Blame(file)  # the agent's own view
        worst = max(noted.values(), default=IDLE)
        wanted = {member for member, what in noted.items() if what == worst} if worst != IDLE else set()
        assert seen.suspects(code, noted.keys()) == wanted
    finally:
        os.close(file)


def test_an_alarm_for_somebody_who_has_left_blames_who_is_there(blame: Blame) -> None:
    blame.alarm(7)
    blame.note(1, HOLDS)
    assert blame.suspects(-signal.SIGALRM, {1, 2}) == {1}
