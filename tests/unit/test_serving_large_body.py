"""Large bodies are received where they stay: whole, in order, within the limits, over plain connections and TLS."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from pathlib import Path
from typing import Any

import pytest
import uvloop
from support.certificates import Authority

from orchestrator.serving.protocol.exchange import Exchange
from orchestrator.serving.protocol.http import HttpServer
from orchestrator.serving.protocol.limits import Limits

LARGE = bytes(range(256)) * 3000


def head(size: int) -> bytes:
    return b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size


def answer(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def digest(exchange: Exchange) -> None:
    exchange.reply(200, [answer(bytes(exchange.body))])


async def converse(
    pieces: list[bytes],
    answers: int,
    limits: Limits | None = None,
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
) -> tuple[bytes, HttpServer]:
    """Return what the server says to `pieces`, until it has given so many answers or closes."""
    server = HttpServer(digest, None)
    ours, theirs = tls or (None, None)
    listener = await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", 0, ssl=ours)
    port = listener.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=theirs, server_hostname="localhost" if theirs else None
    )
    found = b""

    async def listen() -> None:
        nonlocal found
        while found.count(b"HTTP/1.1 ") < answers or found.endswith(b"\r\n"):  # the heads end so
            data = await reader.read(1 << 16)
            if not data:
                return
            found += data

    listening = asyncio.create_task(listen())
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.01)
    await asyncio.wait_for(listening, 20)
    writer.close()
    listener.close()
    await asyncio.sleep(0.05)
    return found, server


RUNNERS: dict[str, Any] = {"uvloop": uvloop.run, "asyncio": asyncio.run}


@pytest.mark.parametrize("loop", sorted(RUNNERS))
def test_large_bodies_arrive_whole_among_small_ones(loop: str) -> None:
    small = b"abcd"
    request = head(len(LARGE)) + LARGE
    cut = [request[:100], request[100:200_000], request[200_000:]]
    after = [request + head(4) + small, head(4) + small + request + request]  # pipelined, before and behind
    found, server = RUNNERS[loop](converse([head(4) + small, request, request, *cut, *after], 9))
    said = [part[-64:] for part in found.split(b"HTTP/1.1 ")[1:]]
    s, b = answer(small), answer(LARGE)
    assert said == [s, b, b, b, b, s, s, b, b]
    assert server.buffered_bytes == 0


def test_large_bodies_arrive_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    certificate, key = authority.issue("localhost")
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(certificate, key)
    theirs = ssl.create_default_context(cafile=str(authority.path))
    request = head(len(LARGE)) + LARGE
    found, _ = uvloop.run(converse([request, request, request], 3, tls=(ours, theirs)))
    assert found.count(answer(LARGE)) == 3


def test_a_large_body_that_is_too_much_together_is_refused_and_given_back() -> None:
    request = head(len(LARGE)) + LARGE
    held: list[Exchange] = []

    def hold_the_second(exchange: Exchange) -> None:
        held.append(exchange)
        if len(held) != 2:
            digest(exchange)

    async def run() -> tuple[bytes, int, HttpServer]:
        server = HttpServer(hold_the_second, Limits(buffered=len(LARGE) * 3 // 2))
        listener = await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        writer.write(request)
        await asyncio.wait_for(reader.readuntil(answer(LARGE)), 20)
        writer.write(request)
        while len(held) < 2:
            await asyncio.sleep(0.01)
        other, writing = await asyncio.open_connection(*listener.sockets[0].getsockname())
        writing.write(request)
        found = await asyncio.wait_for(other.readuntil(b"}"), 20)
        kept = server.buffered_bytes
        digest(held[1])
        listener.close()
        return found, kept, server

    found, kept, server = uvloop.run(run())
    assert found.startswith(b"HTTP/1.1 503")
    assert kept == len(LARGE)
    assert server.buffered_bytes == 0


def test_a_client_that_leaves_in_a_large_body_leaves_nothing() -> None:
    async def leave() -> tuple[bytes, HttpServer]:
        server = HttpServer(digest, None)
        listener = await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        request = head(len(LARGE)) + LARGE
        writer.write(request)
        await asyncio.sleep(0.05)
        writer.write(request[:300_000])
        await asyncio.sleep(0.05)
        assert server.buffered_bytes > 0
        writer.transport.abort()
        await asyncio.sleep(0.1)
        assert not server.connections
        listener.close()
        return b"", server

    assert uvloop.run(leave())[1].buffered_bytes == 0


def test_a_large_body_that_stops_is_answered_with_408() -> None:
    request = head(len(LARGE)) + LARGE

    async def stop() -> tuple[bytes, HttpServer]:
        server = HttpServer(digest, Limits(body_s=0.2))
        listener = await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        writer.write(request)
        await asyncio.wait_for(reader.readuntil(answer(LARGE)), 20)
        writer.write(request[:300_000])
        await asyncio.sleep(0.4)
        for connection in list(server.connections):
            if connection.deadline < asyncio.get_running_loop().time():
                connection.expire()
        found = await asyncio.wait_for(reader.readuntil(b"}"), 20)
        writer.write(b"x" * 10_000)  # too late: it is dropped
        await asyncio.sleep(0.05)
        listener.close()
        writer.close()
        await asyncio.sleep(0.05)
        return found, server

    found, server = uvloop.run(stop())
    assert found.startswith(b"HTTP/1.1 408")
    assert server.buffered_bytes == 0
