"""Remembered heads: equal bytes mean an equal request, and only heads whose end is beyond doubt are remembered."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from orchestrator.serving.protocol.exchange import Exchange
from orchestrator.serving.protocol.heads import Head, Heads
from orchestrator.serving.protocol.http import HttpServer
from orchestrator.serving.protocol.limits import Limits

HEAD = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.ended = False

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, pieces: list[bytes]) -> None:
        self.written += b"".join(pieces)

    def is_closing(self) -> bool:
        return False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def echo(exchange: Exchange) -> None:
    """Answer with what was understood."""
    names = sorted(name.decode() for name in exchange.headers)
    exchange.reply(
        200, [orjson.dumps([exchange.method.decode(), exchange.target.decode(), names]), bytes(exchange.body)]
    )


def talk(chunks: list[bytes], limits: Limits | None = None, handler: Any = echo) -> tuple[bytes, bool]:
    """Return what one connection answers to `chunks`, and whether it ends."""

    async def run() -> tuple[bytes, bool]:
        wire: Any = Wire()
        connection = HttpServer(handler, limits).protocol()
        connection.connection_made(wire)
        for chunk in chunks:
            connection.data_received(chunk)
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return wire.written, wire.ended

    return asyncio.run(run())


def test_a_known_head_is_answered_as_a_new_one_however_it_is_cut() -> None:
    first, _ = talk([HEAD + b"abcd"])
    assert first.endswith(b'["POST","/a",["content-length","host"]]abcd')
    stream = (HEAD + b"abcd") * 5 + b"GET /b HTTP/1.1\r\nHost: y\r\n\r\n" + HEAD + b"abcd"
    expected, _ = talk([b"%c" % byte for byte in stream])  # byte by byte: nothing is ever known
    assert expected.count(b"HTTP/1.1 200") == 7
    for size in (1 << 20, 7, 50, 60, 64):
        cut = [stream[place : place + size] for place in range(0, len(stream), size)]
        assert talk([HEAD + b"abcd", *cut])[0] == first + expected


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n" + HEAD,  # empty lines before the request
        b"POST /a HTTP/1.1\nHost: x\nContent-Length: 4\n\nabcd\r\n\r\n",  # bare line feeds: the end is elsewhere
        HEAD.replace(b"Host: x", b"Host: x\r\n y"),  # a folded header
        HEAD.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked"),
        HEAD.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue"),
        HEAD.replace(b"Host: x", b"Host: x\r\nConnection: close"),
        HEAD.replace(b"Host: x", b"Host: x\r\nX: " + b"x" * 5000),
    ],
)
def test_a_head_that_needs_the_parser_is_never_remembered(raw: bytes) -> None:
    heads = Heads()
    headers = {b"host": b"x", b"content-length": b"4"}
    for name in (b"Transfer-Encoding", b"Expect"):
        if name in raw:
            headers[name.lower()] = b""
    heads.learn(raw, len(headers), Head(b"POST", b"/a", headers, keep_alive=b"close" not in raw))
    assert heads.find(raw, 0)[0] is None


def test_a_plain_head_is_remembered_and_the_memory_is_bounded() -> None:
    heads = Heads()
    head = Head(b"POST", b"/a", {b"host": b"x", b"content-length": b"4"}, keep_alive=True)
    heads.learn(HEAD + b"abcd", 2, head)
    assert heads.find(b"zz" + HEAD, 2) == (head, len(HEAD) + 2)
    others = [HEAD.replace(b"/a", b"/%d" % number) for number in range(3000)]
    for other in others:
        heads.learn(other, 2, head)
    assert sum(heads.find(other, 0)[0] is not None for other in others) <= 1024


def test_what_follows_a_last_request_is_not_answered() -> None:
    last = HEAD.replace(b"Host: x", b"Host: x\r\nConnection: close") + b"abcd"
    found, ended = talk([HEAD + b"abcd", last + HEAD + b"abcd", HEAD + b"abcd"])
    assert found.count(b"HTTP/1.1 200") == 2
    assert ended


def test_bodies_of_known_heads_are_held_to_the_limits() -> None:
    kept: list[Exchange] = []
    found, ended = talk([HEAD + b"abcd"] * 4, Limits(buffered=10), kept.append)
    assert len(kept) == 2
    assert found == b""  # the refusal waits for the answers before it
    assert not ended


def test_a_handler_that_fails_is_answered_with_500_on_a_known_head_too() -> None:
    def fail(exchange: Exchange) -> None:
        if exchange.body == b"fail":
            raise ValueError("ours")
        echo(exchange)

    found, ended = talk([HEAD + b"abcd", HEAD + b"fail"], handler=fail)
    assert found.count(b"HTTP/1.1 200") == found.count(b"HTTP/1.1 500") == 1
    assert ended
