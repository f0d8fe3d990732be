"""Who says nothing, or half of a request, holds no place in the console."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from orchestrator.console.patience import PatientProtocol


class Hasty(PatientProtocol):
    request_s = 0.2
    answer_s = 0.2
    most = 2


async def app(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/stuck":
        await asyncio.sleep(30)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def served(play: Callable[[int], Awaitable[None]]) -> None:
    async def main() -> None:
        config = uvicorn.Config(app, port=0, lifespan="off", ws="none", log_level="critical", http=Hasty)
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve())
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.01)
            await play(server.servers[0].sockets[0].getsockname()[1])
            server.should_exit = server.force_exit = True
            await running

    asyncio.run(main())


WHOLE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
        b"GET /stuck HTTP/1.1\r\nHost: a\r\n\r\n",
        WHOLE,
        WHOLE + b"GET / HTTP/1.1\r\nHost",
    ],
)
def test_a_connection_that_takes_too_long_is_ended(said: bytes) -> None:
    async def play(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        try:
            found = await reader.read()
        except ConnectionResetError:
            found = b""
        assert found.endswith(b"ok") == said.startswith(WHOLE)
        writer.close()

    served(play)


def test_one_too_many_is_turned_away_and_a_place_becomes_free() -> None:
    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(WHOLE)
            return (await reader.read(4096))[-2:]
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def play(port: int) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert await ask(port) == b""
        while await ask(port) != b"ok":  # the silent ones are ended meanwhile
            await asyncio.sleep(0.02)
        for _, writer in silent:
            writer.close()

    served(play)
