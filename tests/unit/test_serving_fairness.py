"""Batching and whose turn it is on a shared slot, in a world with a clock of its own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.serving.dispatch.pace import Pace
from orchestrator.serving.dispatch.queueing import rows_by_shape
from orchestrator.serving.protocol.signature import Signature
from orchestrator.serving.protocol.tensors import TensorSpec
from orchestrator.serving.serve_settings import ServeSettings
from tests.support.dispatch_world import Client, World

BATCH_S = 0.01


def test_a_flooded_endpoint_slows_its_neighbour_by_no_more_than_its_share() -> None:
    world = World()
    a, b = world.lane("a"), world.lane("b")
    for endpoint in ("a", "b"):
        world.replica(endpoint, "slot", lambda rows: BATCH_S)
    flood = [world.ask(a) for _ in range(8_000)]
    asked: list[Client] = []
    for i in range(60):
        world.at(world.now + 0.0931 * i, lambda: asked.append(world.ask(b)))
    world.run()
    assert max(client.took_s for client in asked) <= 3 * BATCH_S + 1e-9
    assert all(client.done and client.error is None for client in flood)
    assert world.most_in_flight == 2


def test_alone_on_its_slot_an_endpoint_gets_all_of_it() -> None:
    world = World()
    lane = world.lane("a")
    world.replica("a", "slot", lambda rows: BATCH_S)
    world.replica("b", "slot", lambda rows: BATCH_S) if world.lane("b") else None
    clients = [world.ask(lane) for _ in range(800)]
    begun = world.now
    world.run()
    assert world.now - begun == pytest.approx(100 * BATCH_S)
    assert all(client.done for client in clients)


def test_a_newly_busy_endpoint_has_no_claim_to_the_time_that_it_did_not_use() -> None:
    world = World()
    a, b = world.lane("a"), world.lane("b")
    for endpoint in ("a", "b"):
        world.replica(endpoint, "slot", lambda rows: BATCH_S)
    for _ in range(4_000):
        world.ask(a)
    world.run(2.0)
    before = len(world.batches)
    for _ in range(4_000):
        world.ask(b)
    world.run(0.4)
    ran = [endpoint for _, endpoint, _ in world.batches[before:]]
    assert abs(ran.count("a") - ran.count("b")) <= 3


def test_a_replica_that_computes_for_long_takes_only_full_batches_ahead() -> None:
    world = World()
    lane = world.lane("a")
    world.replica("a", "slot", lambda rows: BATCH_S)
    world.ask(lane)
    world.run()
    began = world.now
    for i in range(7):  # one runs; the others come while it does, and leave together
        world.at(began + 0.001 * i, lambda: world.ask(lane))
    world.run()
    assert [rows for _, _, rows in world.batches] == [1, 1, 6]
    for _ in range(8 + 8 + 3):
        world.ask(lane)
    world.run(BATCH_S / 2)
    assert [rows for _, _, rows in world.batches[3:]] == [8, 8]  # the second is full, and is sent ahead
    world.run()
    assert [rows for _, _, rows in world.batches[3:]] == [8, 8, 3]


def test_a_replica_that_computes_for_no_time_is_never_kept_waiting() -> None:
    world = World()
    lane = world.lane("a")
    world.replica("a", "slot", lambda rows: 0.0005)
    world.ask(lane)
    world.run()
    began = world.now
    for i in range(3):
        world.at(began + 0.0001 * i, lambda: world.ask(lane))
    world.run()
    assert [rows for _, _, rows in world.batches] == [1, 1, 1, 1]


def test_shares_weigh() -> None:
    world = World()
    for name, share in (("a", 3.0), ("b", 1.0)):
        lane = world.lane(name, ServeSettings(share=share))
        world.replica(name, "slot", lambda rows: BATCH_S)
        for _ in range(4_000):
            world.ask(lane)
    world.run(2.0)
    ran = [endpoint for _, endpoint, _ in world.batches]
    assert ran.count("a") == pytest.approx(3 * ran.count("b"), abs=4)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([1.0, 2.0, 5.0]), st.sampled_from([0.002, 0.01, 0.05]), st.integers(1, 3)),
        min_size=2,
        max_size=5,
    ),
    st.integers(1, 3),
)
def test_device_time_follows_the_shares_whatever_batches_cost(rows: list[tuple[float, float, int]], depth: int) -> None:
    """Start-time fair queueing: two busy endpoints differ by at most some batches of each, by share, at any time."""
    world = World()
    for number, (share, cost_s, size) in enumerate(rows):
        lane = world.lane(f"e{number}", ServeSettings(share=share))
        world.replica(f"e{number}", "slot", lambda total, cost_s=cost_s: cost_s, depth=depth)
        for _ in range(40):
            world.ask(lane, rows=size, forever=True)
    world.run(0.6)
    assert world.most_in_flight <= depth
    used = [0.0] * len(rows)
    for _, endpoint, _ in world.batches:
        share, cost_s, _ = rows[int(endpoint[1:])]
        used[int(endpoint[1:])] += cost_s / share
    slack = [(depth + 1) * cost_s / share for share, cost_s, _ in rows]
    for one, most in zip(used, slack, strict=True):
        for other, more in zip(used, slack, strict=True):
            assert abs(one - other) <= most + more + 1e-9


def test_a_replica_that_dies_gives_its_place_on_the_slot_back() -> None:
    world = World()
    a, b = world.lane("a"), world.lane("b")
    dying = world.replica("a", "slot", lambda rows: 1000.0, depth=1)
    world.replica("b", "slot", lambda rows: BATCH_S, depth=1)
    lost = world.ask(a)
    world.run(0.001)
    waiting = [world.ask(b) for _ in range(9)]
    world.run(1.0)
    assert not any(client.done for client in waiting)
    world._busy_until.clear()
    world.dispatcher.lost(dying, world.now)
    world.run(1.0)
    assert all(client.done for client in waiting)
    assert not lost.done
    world.replica("a", "slot", lambda rows: BATCH_S)
    world.run(1.0)
    assert lost.error is None
    assert lost.done


def test_a_delay_fills_batches_and_is_never_longer_than_it_says() -> None:
    world = World()
    lane = world.lane("a", ServeSettings(max_queue_delay_ms=20))
    world.replica("a", "slot", lambda rows: 0.001)
    clients: list[Client] = []
    for i in range(12):
        world.at(world.now + 0.001 * i, lambda: clients.append(world.ask(lane)))
    world.run(0.0125)
    assert [rows for _, _, rows in world.batches] == [8]
    assert world.timers == 1
    world.run()
    assert [rows for _, _, rows in world.batches] == [8, 4]
    assert clients[8].took_s == pytest.approx(0.021, abs=1e-6)
    assert world.timers == 0
    assert not lane.timed


def test_a_delay_never_makes_a_request_too_late() -> None:
    world = World()
    lane = world.lane("a", ServeSettings(max_queue_delay_ms=1000))
    world.replica("a", "slot", lambda rows: 0.001)
    client = world.ask(lane, timeout_s=0.5)
    world.run(0.4)
    assert client.done
    assert client.error is None


def test_an_endpoint_may_want_smaller_batches_than_its_model_takes() -> None:
    world = World()
    lane = world.lane("a", ServeSettings(max_batch=3))
    world.replica("a", "slot", lambda rows: BATCH_S)
    for rows in (1, 1, 1, 1, 5, 1):
        world.ask(lane, rows=rows)
    world.run()
    assert [rows for _, _, rows in world.batches] == [3, 1, 5, 1]


def test_batches_fit_what_the_model_was_compiled_for() -> None:
    specs = (TensorSpec("ids", "INT64", ("batch", "n")),)
    buckets = ({"ids": (16, 1)}, {"ids": (2, 4)}, {"ids": (4, 4)})
    gears = rows_by_shape(buckets, Signature(specs, specs, 16))
    assert gears == {((1,),): 16, ((4,),): 4}
    assert rows_by_shape(({"ids": (1, 4)},), Signature(specs, specs, 1)) == {}
    world = World()
    lane = world.lane("a")
    world.replica("a", "slot", lambda rows: BATCH_S, max_batch=16, gears=gears)
    for shape in (1, 4) * 8:
        world.ask(lane, shape=shape)
    world.run()
    assert sorted(rows for _, _, rows in world.batches) == [4, 4, 8]


def test_who_is_refused_is_told_when_to_come_again() -> None:
    world = World(queue_limit=400)
    lane = world.lane("a")
    world.replica("a", "slot", lambda rows: 0.2, depth=1)
    for tick in range(80):
        world.at(world.now + tick * 0.05, lambda: [world.ask(lane) for _ in range(10)])
        world.at(world.now + tick * 0.05, lambda: world.dispatcher.sweep(world.now))
    world.run(3.99)
    while len(lane.queue) < 400:
        world.ask(lane)
    refused = world.ask(lane).error
    assert refused is not None
    assert refused.status == 429
    assert 8 <= refused.retry_after_s <= 12  # 400 wait, and 40 are served in a second


def test_a_pace_is_at_least_one_second_and_at_most_a_minute() -> None:
    pace = Pace()
    assert pace.retry_after_s(50.0, 0, 1000) == 1
    pace.sample(50.0, 0, 10)
    pace.sample(51.0, 5, 10)
    assert pace.retry_after_s(51.0, 5, 10) == 2
    assert pace.retry_after_s(51.0, 5, 0) == 1
    assert pace.retry_after_s(51.0, 5, 10_000) == 60
