"""The load generator of `benchmarks/serving.py` measures what it says: percentiles, framing, and waits that a stall causes."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from serving_bench.histogram import Histogram
from serving_bench.job import Job
from serving_bench.load import run
from serving_bench.schedule import Schedule
from serving_bench.wire import BROKEN, Grpc, Http1, Request

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
REQUEST = Request(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"hello")


def test_percentiles_are_those_of_the_values() -> None:
    values = np.random.default_rng(0).lognormal(13, 1.5, 50_000).astype(np.int64) + 1
    histogram = Histogram()
    for value in values.tolist():
        histogram.add(value)
        histogram.fold(least=9_999)
    assert histogram.count == len(values)
    for share in (0.5, 0.9, 0.99, 0.999, 1.0):
        exact_ms = float(np.quantile(values, share, method="inverted_cdf")) / 1e6
        assert histogram.quantile_ms(share) == pytest.approx(exact_ms, rel=0.009)


def test_an_answer_is_whole_wherever_it_is_split() -> None:
    for cut in range(1, len(ANSWER)):
        wire = Http1()
        assert wire.feed(ANSWER[:cut]) == 0
        assert wire.feed(ANSWER[cut:]) == 200
        assert wire.feed(ANSWER) == 200
        assert wire.answer == ANSWER


def test_a_second_answer_to_one_request_is_seen() -> None:
    assert Http1().feed(ANSWER + ANSWER) == BROKEN
    wire = Grpc("/a/b")
    wire.render(REQUEST)
    wire.render(REQUEST)
    assert wire.feed(b"\0\0\x05\0\0\0\0\0\x01hello") == BROKEN


def test_arrivals_have_the_rate_that_was_asked_for() -> None:
    times = Schedule(1000.0, 1, 0)
    last = [times.take() for _ in range(20_000)][-1]
    assert last / 1e9 == pytest.approx(20.0, rel=0.05)


def accept_all(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    """Serve each connection in a thread of its own, until the listener is shut."""

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


@pytest.fixture
def stalling() -> Iterator[int]:
    """A server that answers at once, but for one pause of 0.4 s half a second after its first request."""
    listener = socket.create_server(("127.0.0.1", 0))
    pause = threading.Lock()
    first: list[float] = []

    def serve(peer: socket.socket) -> None:
        with peer:
            while peer.recv(4096):
                with pause:
                    first.append(time.monotonic())
                    if len(first) > 1 and first[0] and first[-1] - first[0] > 0.5:
                        first[0] = float("inf")
                        time.sleep(0.4)
                peer.sendall(ANSWER)

    accept_all(listener, serve)
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_an_open_loop_counts_those_who_came_during_a_stall(stalling: int) -> None:
    found = run(Job(stalling, (REQUEST,), connections=4, seconds=1.5, warmup_s=0.0, rate=200.0, check_every=1))
    assert found["answers"] == {"200": sum(found["answers"].values())}
    assert (found["wrong"], found["unanswered"], found["unsent"]) == (0, 0, 0)
    # 0.4 s of 1.5 s: a quarter of all waited, half of those for over 0.2 s. A closed loop would have seen four of them.
    assert found["p90_ms"] > 100
    assert found["max_ms"] > 350


def test_a_server_may_end_an_idle_connection_but_not_answer_twice() -> None:
    asked: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))
    second = threading.Event()

    def serve(peer: socket.socket) -> None:
        with peer:
            if peer.recv(4096):
                asked.append(1)
                peer.sendall(ANSWER)
                time.sleep(0.02)
                if len(asked) == 3:
                    second.set()
                    peer.sendall(ANSWER)

    accept_all(listener, serve)
    port = listener.getsockname()[1]
    found = run(Job(port, (REQUEST,), connections=1, seconds=1.0, warmup_s=0.0, rate=8.0))
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    assert second.is_set()
    assert (found["wrong"], found["example"], found["unanswered"]) == (1, "an answer without a request", 0)
