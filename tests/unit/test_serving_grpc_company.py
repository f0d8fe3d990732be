"""When gRPC calls go on: alone where they come slowly, together where they come fast."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from orchestrator.serving.router.company import Company


class Loop:
    """An event loop of whose turns the test decides."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.now = 100.0

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    def create_future(self) -> Any:
        return asyncio.Future(loop=self._real)

    def __enter__(self) -> Loop:
        self._real = asyncio.new_event_loop()
        return self

    def __exit__(self, *_: object) -> None:
        self._real.close()

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for call in soon:
            call()

    def company(self) -> Company:
        return Company(cast("asyncio.AbstractEventLoop", self), lambda: self.now)

    def calls(self, company: Company, count: int, apart_s: float) -> list[asyncio.Future[None] | None]:
        found = list[asyncio.Future[None] | None]()
        for _ in range(count):
            self.now += apart_s
            found.append(company.asked(self.now))
            self.turn()
        return found


def test_slow_calls_never_wait() -> None:
    with Loop() as loop:
        assert loop.calls(loop.company(), 100, 0.0004) == [None] * 100
        assert not loop.soon


def test_fast_calls_wait_for_sixteen_at_most() -> None:
    with Loop() as loop:
        company = loop.company()
        loop.calls(company, 60, 0.00005)
        waiting = [turn for turn in loop.calls(company, 64, 0.00005) if turn is not None]
        assert len(waiting) == 64
        done = sum(turn.done() for turn in waiting)
        assert done >= 64 - 16
        assert all(turn.done() for turn in waiting[:done]), "who came first goes first"


def test_a_pause_ends_the_wait_and_so_does_the_longest_one() -> None:
    with Loop() as loop:
        company = loop.company()
        loop.calls(company, 100, 0.0001)
        loop.now += 0.0004
        loop.turn()
        (turn,) = loop.calls(company, 1, 0.0)
        assert turn is not None
        assert not turn.done()
        loop.now += 0.00029
        loop.turn()
        assert not turn.done()
        loop.now += 0.00002
        loop.turn()
        assert turn.done()
        assert not loop.soon, "nobody waits, so nobody looks"
        first, *_ = loop.calls(company, 6, 0.00025)
        assert first is not None
        assert not first.done(), "others still come"
        loop.now += 0.00026
        loop.turn()
        assert first.done(), "1.5 ms are over"


def test_a_client_that_has_gone_holds_nobody() -> None:
    with Loop() as loop:
        company = loop.company()
        loop.calls(company, 100, 0.0001)
        loop.now += 0.001
        loop.turn()
        first, second = loop.calls(company, 2, 0.0001)
        assert first is not None
        assert second is not None
        first.cancel()
        loop.now += 0.001
        loop.turn()
        assert first.cancelled()
        assert second.done()
        assert not second.cancelled()


def test_after_a_rush_a_lone_call_goes_at_once() -> None:
    with Loop() as loop:
        company = loop.company()
        loop.calls(company, 100, 0.0001)
        loop.now += 1.0
        loop.turn()
        assert loop.calls(company, 20, 0.002)[-1] is None
