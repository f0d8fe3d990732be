"""A replica that falls silent: its slot goes on with the others, and it gets nothing more until it speaks again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.serving.dispatch.lanes import Lane, Replica
from orchestrator.serving.link.frames import Frame
from tests.support.dispatch_world import World

BATCH_S = 0.01


class Silent(World):
    """Endpoints in `silent` compute nothing until they are waked."""

    def __init__(self) -> None:
        super().__init__()
        self.silent: set[str] = set()
        self._kept: list[tuple[Replica, Frame, Callable[[int], float]]] = []

    def _compute(self, replica: Replica, frame: Frame, cost_s: Callable[[int], float]) -> None:
        if replica.endpoint in self.silent:
            self._kept.append((replica, frame, cost_s))
        else:
            super()._compute(replica, frame, cost_s)

    def wake(self) -> None:
        self.silent.clear()
        kept, self._kept = self._kept, []
        for row in kept:
            self._compute(*row)

    def sweep(self, seconds: float) -> None:
        """Let time pass, looked at 20 times a second as the router does."""
        end = self.now + seconds
        while self.now < end:
            self.dispatcher.sweep(self.now)
            self.run(0.05)


@pytest.fixture
def world() -> tuple[Silent, Lane, Lane]:
    """Two endpoints on one slot, each of which has answered once."""
    world = Silent()
    lanes = world.lane("a"), world.lane("b")
    for endpoint, lane in zip("ab", lanes, strict=True):
        world.replica(endpoint, "slot", lambda rows: BATCH_S)
        world.ask(lane)
    world.run(1.0)
    return world, *lanes


def test_the_slot_goes_on_and_the_silent_one_gets_nothing_more(world: tuple[Silent, Lane, Lane]) -> None:
    site, a, b = world
    site.silent.add("a")
    lost = [site.ask(a) for _ in range(30)]
    others = [site.ask(b) for _ in range(30)]
    site.sweep(3.0)
    assert all(client.done for client in others)
    (replica,) = a.replicas
    assert replica.late
    assert len(replica.batches) == 2  # what it had taken when it fell silent
    assert not any(client.done for client in lost)
    assert (a.ready, b.ready) == (1, 1)
    site.sweep(4.0)
    assert (a.ready, b.ready) == (0, 1)  # silent for so long that it is not counted on
    site.wake()
    site.sweep(1.0)
    assert all(client.done for client in lost)
    assert (a.ready, replica.late, replica.slot.free) == (1, False, 2)


def test_turns_are_counted_once_whether_the_silent_one_ends_or_answers(world: tuple[Silent, Lane, Lane]) -> None:
    site, a, b = world
    site.silent.add("a")
    site.ask(a)
    site.sweep(2.0)
    (replica,) = a.replicas
    site.dispatcher.lost(replica, site.now)
    (other,) = b.replicas
    assert other.slot.free == 2


def test_what_another_generation_can_answer_does_not_wait_for_it(world: tuple[Silent, Lane, Lane]) -> None:
    site, a, _ = world
    site.silent.add("a")
    held, queued, plain = site.ask(a), site.ask(a), site.ask(a)
    site.run(0.1)
    requests: list[Any] = [request for batch in a.replicas[0].batches.values() for request in batch.requests]
    assert len(requests) == 3
    for request in requests[:2]:
        request.leave_at = math.inf if request.caller is plain else site.now + 1000
    site.sweep(7.0)
    assert [client.error.kind if client.error else "" for client in (held, queued, plain)] == ["replica_hangs"] * 2 + [
        ""
    ]


def test_a_first_batch_may_take_its_time() -> None:
    site = Silent()
    lane = site.lane("a")
    site.replica("a", "slot", lambda rows: BATCH_S)
    site.silent.add("a")
    client = site.ask(lane)
    site.sweep(8.0)
    assert lane.ready == 1  # nothing is known of how long it takes
    site.wake()
    site.run(1.0)
    assert client.done
