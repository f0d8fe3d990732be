"""Prometheus over a real connection: numbers, refusals, nonsense, and servers that never end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from urllib.parse import unquote_plus

import pytest

from orchestrator.rollout.evidence.prometheus import QueryError, query, sample

Say = Callable[[socket.socket, str], None]


@contextmanager
def prometheus(say: Say) -> Generator[str]:
    """Serve one connection after the other with `say`, which is given the head of the request; yields the address."""
    ended = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.05)

    def serve() -> None:
        while not ended.is_set():
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(5)
                try:
                    say(connection, connection.recv(65536).decode())
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        ended.set()
        thread.join()
        listening.close()


def body(text: str, status: str = "200 OK") -> Say:
    """Answer with JSON."""
    answer = f"HTTP/1.1 {status}\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n{text}".encode()
    return lambda connection, _head: connection.sendall(answer)


def ok(data: str) -> Say:
    """Answer as Prometheus does when all is well."""
    return body(f'{{"status": "success", "data": {data}}}')


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ('{"resultType": "vector", "result": [{"metric": {}, "value": [1.5, "0.25"]}]}', 0.25),
        ('{"resultType": "scalar", "result": [1.5, "7"]}', 7.0),
        ('{"resultType": "vector", "result": []}', None),
    ],
)
def test_one_number(data: str, value: float | None) -> None:
    asked: list[str] = []

    def say(connection: socket.socket, head: str) -> None:
        asked.append(head)
        ok(data)(connection, head)

    with prometheus(say) as address:
        assert query(address, 'rate(x{g="4"}[1m])', 5.0) == value
    assert asked[0].startswith("GET /api/v1/query?")
    assert 'query=rate(x{g="4"}[1m])' in unquote_plus(asked[0])


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (body('{"status": "error", "error": "parse error"}', "400 Bad Request"), "parse error"),
        (body("<html>", "502 Bad Gateway"), "status 502, not with JSON"),
        (ok('{"resultType": "matrix", "result": []}'), "a matrix, not one number"),
        (ok('{"resultType": "vector", "result": [{}]}'), "answered with"),
        (body("[" * 200_000), "not with JSON"),
        (body(" " * (2 << 20)), "over 1048576 bytes"),
        (lambda connection, _head: connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"), "cannot ask"),
    ],
)
def test_what_is_no_number_is_said(say: Say, message: str) -> None:
    with prometheus(say) as address, pytest.raises(QueryError, match=message):
        query(address, "up", 5.0)


def test_nan_is_no_value() -> None:
    with prometheus(ok('{"resultType": "scalar", "result": [1.5, "NaN"]}')) as address:
        found = sample("mine", address, "up", 5.0, t=3.0)
    assert (found.value, found.error) == (None, "")


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n"])
def test_a_server_that_drips_holds_nobody(begin: bytes) -> None:
    gone = threading.Event()

    def drip(connection: socket.socket, _head: str) -> None:
        connection.sendall(begin)
        until = time.monotonic() + 20
        try:
            while time.monotonic() < until:
                connection.sendall(b"X-A: a\r\n")
                time.sleep(0.02)
        except OSError:
            gone.set()

    with prometheus(drip) as address:
        with pytest.raises(QueryError, match=r"did not answer within 0\.2 s"):
            query(address, "up", 0.2)
        assert gone.wait(10), "the connection was left open"
