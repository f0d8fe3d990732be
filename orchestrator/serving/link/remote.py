"""The link for replicas on other hosts: TCP with TLS, and a token in the first line. See LINK.md."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Final, cast

from orchestrator.core.errors import UsageError
from orchestrator.serving.link.connections import LinkServer
from orchestrator.serving.protocol.listening import Contexts, Listener

_log: Final = logging.getLogger(__name__)
_FIRST: Final = b"OL-TOKEN "
_MAX_LINE: Final = 256
_MAX_STRANGERS: Final = 64
"""Connections that have not shown a token yet."""
_PATIENCE_S: Final = 5.0
_MIN_TOKEN: Final = 32


def first_line(token: str) -> bytes:
    """Return what a dialler sends first."""
    return _FIRST + token.encode() + b"\n"


def read_token(path: Path) -> str:
    """Return the token that both ends of a remote link know.

    Raises:
        UsageError: The file cannot be read, others can read it, or the token is short.
    """
    try:
        found = path.stat().st_mode
        if not stat.S_ISREG(found):
            raise UsageError("the link's token is in no regular file", place=str(path), hint="name a file, not a pipe")
        mode = stat.S_IMODE(found)
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the link's token: {error}", place=str(path)) from error
    if mode & 0o077:
        raise UsageError(f"others can read the link's token: mode {mode:o}", place=str(path), hint=f"chmod 600 {path}")
    if not _MIN_TOKEN <= len(token) <= _MAX_LINE - len(_FIRST) - 1:
        hint = f"openssl rand -hex 32 > {path}"
        raise UsageError(f"the link's token has {len(token)} characters, at least {_MIN_TOKEN}", hint=hint)
    return token


def keep_alive(link: socket.socket) -> None:
    """Notice within about 10 s that the other host has gone: over TCP the end of a process is told, that of a host is not."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, 4),
        (socket.TCP_KEEPINTVL, 2),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, 10_000),
        (socket.TCP_NODELAY, 1),
    ):
        link.setsockopt(socket.IPPROTO_TCP, option, value)


class RemoteLinks:
    """Lets diallers with the token through to the link server.

    Raises:
        UsageError: The token cannot be used.
    """

    def __init__(self, links: LinkServer, token_file: Path) -> None:
        self.links = links
        self.digest = hashlib.sha256(read_token(token_file).encode()).digest()
        self.strangers = 0

    def protocol(self) -> Doorkeeper:
        """Make the protocol of a new connection; pass this method to `create_server`."""
        return Doorkeeper(self)


class Doorkeeper(asyncio.Protocol):
    """A connection until it has shown the token; then the link's own protocol takes its place."""

    def __init__(self, server: RemoteLinks) -> None:
        self._server = server
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._line = b""
        self._waiting = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)
        self._waiting = True
        self._server.strangers += 1
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._end, "no token came")
        if self._server.strangers > _MAX_STRANGERS:
            self._end("too many have shown no token yet")

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if not self._waiting:
            return
        self._line += data
        line, end, rest = self._line.partition(b"\n")
        if len(line) >= _MAX_LINE or not line.startswith(_FIRST[: len(line)]):
            self._end("its first line is none of ours")
            return
        if not end:
            return
        given = hashlib.sha256(line.removeprefix(_FIRST)).digest()
        if not hmac.compare_digest(given, self._server.digest):
            self._end("its token is not valid")
            return
        self._settle()
        connection = self._server.links.protocol()
        self._transport.set_protocol(connection)
        connection.connection_made(self._transport)
        if rest:
            connection.data_received(rest)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the name is asyncio's
        """Called by the event loop."""
        self._settle()

    def _settle(self) -> None:
        if self._waiting:
            self._waiting = False
            self._server.strangers -= 1
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, why: str) -> None:
        _log.warning("a link from %s is refused: %s", self._transport.get_extra_info("peername"), why)
        self._settle()
        self._transport.abort()


def listen(links: LinkServer, host: str, port: int, token_file: Path, tls: Contexts | None) -> Listener:
    """Take links from other hosts; call this in the event loop.

    Raises:
        UsageError: The token cannot be used, or the port.
    """
    remote = RemoteLinks(links, token_file)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen for links on {host}:{port}: {os.strerror(error.errno or 0)}") from error
    keep_alive(listener)  # what it accepts has the same options
    return Listener(listener, remote.protocol, tls, _PATIENCE_S)
