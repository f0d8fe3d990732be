"""Brings the routers' link to another host: `python -m orchestrator.serving.link.relay --config relay.json`.

Agents and replicas there dial Unix sockets as at home; behind each of them is one router, over TLS and with the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from orchestrator.core.addresses import is_loopback
from orchestrator.core.errors import UsageError
from orchestrator.core.files import private_folder
from orchestrator.serving.config import check_socket
from orchestrator.serving.link.remote import first_line, keep_alive, read_token
from orchestrator.serving.start import start

_log: Final = logging.getLogger("orchestrator.serving.link.relay")
_CHUNK: Final = 1 << 18
_CONNECT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Settings of the relay, which brings the routers' link to another host.

    Attributes:
        routers: `host:port` of the routers' remote links, router 0 first.
        sockets: Unix sockets that agents and replicas here dial, in the same order.
        token_file: The link's token.
        ca: CA of the routers' certificate, PEM; needed but for loopback.
        cert: Certificate of the relay, PEM, where routers ask for one.
        key: Its private key, PEM.
        parent_pid: When not 0, the relay dies with this parent.
    """

    routers: Sequence[str]
    sockets: Sequence[str]
    token_file: str
    ca: str = ""
    cert: str = ""
    key: str = ""
    parent_pid: int = 0

    def check(self) -> None:
        """Raise `UsageError` when a value cannot work."""
        for path in self.sockets:
            check_socket(path)
        ports = [router.rpartition(":")[2] for router in self.routers]
        if not self.routers or len(self.routers) != len(self.sockets) or not all(port.isdigit() for port in ports):
            raise UsageError(f"bad relay settings: routers {list(self.routers)}, sockets {list(self.sockets)}")


class Relay:
    """One Unix socket in front of one router.

    Args:
        router: `host:port` of its remote link.
        tls: None for plain TCP, to loopback only.
        token: What both ends know.
    """

    def __init__(self, router: str, tls: ssl.SSLContext | None, token: str) -> None:
        host, _, port = router.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._tls = tls
        self._first = first_line(token)

    async def serve(self, near: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        """Carry one connection until either end closes it; the other end is closed then too."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                far, requests = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=_CHUNK)
        except (OSError, TimeoutError) as error:
            _log.warning("router %s:%d: %s", self._host, self._port, error or "no answer")
            answers.close()
            return
        keep_alive(requests.get_extra_info("socket"))
        requests.write(self._first)
        pumps = [asyncio.create_task(_pump(near, requests)), asyncio.create_task(_pump(far, answers))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for writer in (requests, answers):
                writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()


async def _main(settings: RelaySettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    token, tls = read_token(Path(settings.token_file)), _tls(settings)
    servers: list[asyncio.Server] = []
    for router, path in zip(settings.routers, settings.sockets, strict=True):
        private_folder(Path(path).parent)
        Path(path).unlink(missing_ok=True)
        previous = os.umask(0o177)
        try:
            servers.append(await asyncio.start_unix_server(Relay(router, tls, token).serve, path, limit=_CHUNK))
        finally:
            os.umask(previous)
        _log.info("%s leads to router %s", path, router)
    await stop.wait()
    for server in servers:
        server.close()


def _tls(settings: RelaySettings) -> ssl.SSLContext | None:
    if not settings.ca:
        if all(is_loopback(router.rpartition(":")[0].strip("[]")) for router in settings.routers):
            return None
        raise UsageError("the link to another host needs TLS", hint="name the CA of the routers' certificate as `ca`")
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.cert:
            context.load_cert_chain(settings.cert, settings.key or None, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot use {settings.ca} {settings.cert} for TLS: {error}") from error
    return context


def main(argv: list[str] | None = None) -> int:
    """Run the relay; returns the exit code."""
    return start("orchestrator.serving.link.relay", RelaySettings, lambda settings: uvloop.run(_main(settings)), argv)


if __name__ == "__main__":
    sys.exit(main())
