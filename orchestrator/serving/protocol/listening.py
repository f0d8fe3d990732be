"""A listening socket that takes all who knock: uvloop's own server takes one connection in each turn of the event loop, and
where a turn answers hundreds of requests, a client that comes to a busy router would wait for seconds.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

_log: Final = logging.getLogger("orchestrator.serving.router")
_BACKLOG: Final = 4096
_MOST: Final = 64
"""Connections taken in one turn, so that those who are in are served too."""
_PAUSE_S: Final = 0.1
"""After no connection could be taken for want of descriptors or memory."""


Contexts = Callable[[], ssl.SSLContext]
"""Gives the TLS context of each new connection, since certificates and CAs change."""


class Listener:
    """Listens from the start until `close`.

    Args:
        sock: Bound, not listening yet.
        protocol: Makes the protocol of a connection.
        tls: None for plain connections.
        handshake_s: How long a TLS handshake may take.
    """

    def __init__(
        self,
        sock: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        tls: Contexts | None = None,
        handshake_s: float | None = None,
    ) -> None:
        self._sock, self._protocol = sock, protocol
        self._tls, self._handshake_s = tls, handshake_s if tls else None
        self._loop = asyncio.get_running_loop()
        self._joining: set[asyncio.Task[object]] = set()
        sock.setblocking(False)
        sock.listen(_BACKLOG)
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Take nobody any more; who is in stays."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _accept(self) -> None:
        for _ in range(_MOST):
            try:
                peer, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.warning("no connection can be taken for %s s: %s", _PAUSE_S, error)
                self._loop.remove_reader(self._sock)
                self._loop.call_later(_PAUSE_S, self._resume)
                return
            task: asyncio.Task[object] = self._loop.create_task(self._join(peer))
            self._joining.add(task)
            task.add_done_callback(self._joining.discard)

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._accept)

    async def _join(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.connect_accepted_socket(
                self._protocol, peer, ssl=self._tls and self._tls(), ssl_handshake_timeout=self._handshake_s
            )
        except OSError:  # a handshake that fails, or a client that has left: TLS's errors are of this kind too
            peer.close()
