"""The least that a Python server can do: httptools finds the end of a request, the answer is ready-made. `PORT BODY_BYTES`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httptools
import uvloop

_BODY = b"x" * int(sys.argv[2])
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_BODY) + _BODY


class Bare(asyncio.Protocol):
    """Counts the end of messages."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio`."""
        self._transport: Any = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """See `asyncio`."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Answer."""
        self._transport.write(_ANSWER)


async def main() -> None:
    """Serve for ever."""
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
