"""The queue of one generation: priorities, buckets by shape, and what never reaches a device."""

from __future__ import annotations

from collections import deque
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.serving.dispatch.lanes import Lane, Request
from orchestrator.serving.dispatch.queueing import MAX_BATCH_BYTES, enqueue, take_batch, take_useless
from orchestrator.serving.protocol.oip import LAST
from orchestrator.serving.protocol.signature import Fitted


class Caller:
    def __init__(self) -> None:
        self.done = self.gone = False

    def answer(self, request: Any, outputs: Any) -> None: ...

    def refuse(self, error: Any, lane: Any) -> None: ...


def request(name: str, *, shape: int = 4, rows: int = 1, priority: int = LAST, deadline: float = 9.0, size: int = 16):
    fitted = Fitted((), (), rows, ((shape,),), size)
    return Request(Caller(), cast("Lane", None), fitted, name, 0.0, deadline, False, priority)


def names(requests: Any) -> list[str]:
    return [found.request_id for found in requests]


def test_priorities_go_first_and_equals_keep_their_order() -> None:
    queue: deque[Request] = deque()
    for name, priority in (("a", LAST), ("b", 2), ("c", LAST), ("d", 1), ("e", 2), ("f", LAST)):
        enqueue(queue, request(name, priority=priority))
    assert "".join(names(queue)) == "dbeacf"


def test_what_has_run_once_keeps_its_place() -> None:
    again = request("again")
    again.attempts = 1
    queue = deque([again])
    enqueue(queue, request("urgent", priority=1))
    assert names(queue) == ["again", "urgent"]
    queue.appendleft(request("first"))
    assert names(take_batch(queue, 8, 0.0)[0]) == ["first", "urgent"]
    assert names(take_batch(queue, 8, 0.0)[0]) == ["again"]


def test_a_batch_holds_one_shape_and_the_rest_keeps_its_order() -> None:
    queue = deque([request(str(i), shape=4 + i % 3) for i in range(9)])
    assert names(take_batch(queue, 8, 0.0)[0]) == ["0", "3", "6"]
    assert names(queue) == ["1", "2", "4", "5", "7", "8"]
    assert names(take_batch(queue, 2, 0.0)[0]) == ["1", "4"]
    assert names(queue) == ["2", "5", "7", "8"]


@pytest.mark.parametrize(
    ("queued", "first"),
    [
        ([{"rows": 3}, {"rows": 3}, {"rows": 3}], "01"),
        ([{"rows": 6}, {"rows": 3}, {"rows": 2}], "0"),
        ([{"size": MAX_BATCH_BYTES}, {"size": 1}], "0"),
        ([{"size": MAX_BATCH_BYTES + 1}], "0"),
        ([{"rows": 0}] * 9, "01234567"),
    ],
)
def test_a_batch_is_bounded(queued: list[dict[str, int]], first: str) -> None:
    queue = deque([request(str(i), **values) for i, values in enumerate(queued)])
    assert "".join(names(take_batch(queue, 8, 0.0)[0])) == first
    assert len(first) + len(queue) == len(queued)


def test_nobody_computes_for_clients_that_have_gone_or_are_too_late() -> None:
    def made() -> deque[Request]:
        found = [request("late", deadline=1.0), request("gone"), request("done"), request("good")]
        cast("Caller", found[1].caller).gone = True
        found[2].caller.done = True
        return deque(found)

    taken, dropped = take_batch(made(), 8, 1.0)
    assert (names(taken), names(dropped)) == (["good"], ["late", "gone", "done"])
    queue = made()
    assert names(take_useless(queue, 1.0)) == ["late", "gone", "done"]
    assert names(queue) == ["good"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.sampled_from([1, 2, LAST])), max_size=60))
def test_every_request_runs_once_and_no_batch_mixes(rows: list[tuple[int, int, int]]) -> None:
    queue: deque[Request] = deque()
    for number, (shape, size, priority) in enumerate(rows):
        enqueue(queue, request(str(number), shape=shape, rows=size, priority=priority))
    found: list[str] = []
    while queue:
        head = queue[0]
        taken, dropped = take_batch(queue, 9, 0.0)
        assert taken[0] is head
        assert not dropped
        assert len({one.fitted.key for one in taken}) == 1
        assert sum(one.fitted.rows for one in taken) <= 9
        found += names(taken)
    assert sorted(found, key=int) == [str(i) for i in range(len(rows))]
