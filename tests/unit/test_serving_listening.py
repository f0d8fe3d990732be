"""Who comes to a busy router is let in at once; a full process takes nobody for a moment, and goes on."""

from __future__ import annotations

import asyncio
import errno
import socket
import time

import pytest
import uvloop

from orchestrator.serving.protocol.listening import Listener


class Counted(asyncio.Protocol):
    joined = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        type(self).joined += 1


def bound() -> socket.socket:
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    return found


def test_a_busy_loop_takes_many_connections_in_a_turn() -> None:
    async def main() -> float:
        class Own(Counted):
            joined = 0

        loop = asyncio.get_running_loop()
        sock = bound()
        listener = Listener(sock, Own)

        def busy() -> None:
            time.sleep(0.01)  # a turn that answers hundreds of requests
            loop.call_soon(busy)

        clients = [socket.create_connection(sock.getsockname()) for _ in range(200)]
        loop.call_soon(busy)
        began = time.monotonic()
        while Own.joined < len(clients) and time.monotonic() < began + 5:
            await asyncio.sleep(0)
        took_s = time.monotonic() - began
        assert Own.joined == len(clients)
        listener.close()
        listener.close()
        for client in clients:
            client.close()
        return took_s

    assert uvloop.run(main()) < 1.5  # uvloop's own server takes one in a turn: over 2 s


def test_no_descriptor_left_is_a_pause_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    class Full(socket.socket):
        refusals = 2

        def accept(self) -> tuple[socket.socket, object]:
            if type(self).refusals:
                type(self).refusals -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def main() -> int:
        sock = Full()
        sock.bind(("127.0.0.1", 0))
        listener = Listener(sock, Counted)
        with socket.create_connection(sock.getsockname()):
            deadline = time.monotonic() + 5
            while not Counted.joined and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            listener.close()
        return Counted.joined

    assert uvloop.run(main()) == 1
    assert "no connection can be taken" in caplog.text
