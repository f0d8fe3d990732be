"""An HTTP/1.1 listener: what its connections share, and when they write and end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from orchestrator.serving.protocol.connection import Connection
from orchestrator.serving.protocol.exchange import Exchange
from orchestrator.serving.protocol.heads import Heads
from orchestrator.serving.protocol.limits import Limits

Handler = Callable[[Exchange], None]


class HttpServer:
    """What the connections of one listener share.

    Args:
        handler: Called once per whole request, on the event loop; answers now or later; must not raise.
        limits: See `Limits`.
    """

    def __init__(self, handler: Handler, limits: Limits | None = None) -> None:
        self.handler = handler
        self.limits = limits or Limits()
        self.connections: set[Connection] = set()
        self.heads = Heads()
        self.buffered_bytes = 0
        self.errors: Counter[int] = Counter()
        self.stopping = False
        self._loop = asyncio.get_running_loop()
        self._writing: list[Connection] = []

    def protocol(self) -> Connection:
        """Make the protocol of a new connection; pass this method to `create_server`."""
        return Connection(self)

    def write_soon(self, connection: Connection) -> None:
        """Let a connection write once all answers of this turn of the event loop are rendered.

        Writes in a row cost the least: the first wakes the client, and the others find it awake.
        """
        if not self._writing:
            self._loop.call_soon(self._write)
        self._writing.append(connection)

    def _write(self) -> None:
        writing, self._writing = self._writing, []
        for connection in writing:
            connection.write()

    def sweep(self, now: float) -> None:
        """Close what has passed its deadline; call this about once a second with the loop's time."""
        for connection in [c for c in self.connections if c.deadline < now]:
            connection.expire()

    def stop(self) -> None:
        """Close idle connections; the others close after the answers that they wait for."""
        self.stopping = True
        for connection in list(self.connections):
            connection.close_if_idle()
