"""Prometheus' door: `GET /metrics` on a loopback port of its own, for those who cannot open the admin socket."""

from __future__ import annotations

import asyncio

from orchestrator.core.errors import ServingError
from orchestrator.serving.protocol.exchange import Exchange
from orchestrator.serving.protocol.http import Handler, HttpServer
from orchestrator.serving.protocol.limits import Limits
from orchestrator.serving.router.auth import Guard

_HOST = "127.0.0.1"


class MetricsDoor:
    """One port; whoever needs a token for the public ports needs one here.

    Args:
        port: 0 takes a free one, -1 is no door.
        admin: Answers `/metrics` as it does on the admin socket.
    """

    def __init__(self, port: int, admin: Handler, guard: Guard | None, limits: Limits) -> None:
        self._port = port
        self._admin = admin
        self.http = HttpServer(guard.gate(self._handle) if guard else self._handle, limits)
        self._server: asyncio.Server | None = None
        self.url = ""

    def _handle(self, exchange: Exchange) -> None:
        if exchange.target.partition(b"?")[0] == b"/metrics":
            self._admin(exchange)
        else:
            exchange.fail(404, "only /metrics is here")

    async def open(self) -> None:
        """Listen.

        Raises:
            ServingError: The port is taken.
        """
        if self._port < 0:
            return
        try:
            self._server = await asyncio.get_running_loop().create_server(self.http.protocol, _HOST, self._port)
        except OSError as error:
            raise ServingError(
                f"cannot listen for metrics on {_HOST}:{self._port}: {error}", hint="choose another metrics_port"
            ) from error
        self.url = f"http://{_HOST}:{self._server.sockets[0].getsockname()[1]}/metrics"

    def close(self) -> None:
        """Take no new connection."""
        if self._server is not None:
            self._server.close()
