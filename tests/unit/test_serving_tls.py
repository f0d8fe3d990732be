"""Certificates and CAs that change while the router runs."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import uvloop
from support.certificates import Authority

from orchestrator.core.errors import UsageError
from orchestrator.serving.link.remote import read_token
from orchestrator.serving.protocol.listening import Listener
from orchestrator.serving.router.tls import Tls


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(b"hello")


def test_a_ca_that_is_removed_lets_nobody_in_any_more_nor_resume(tmp_path: Path) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    cert, key = new.issue("server")
    both = tmp_path / "both.pem"
    both.write_bytes(old.path.read_bytes() + new.path.read_bytes())
    tls = Tls(str(cert), str(key), str(both))
    clients = {name: ssl.create_default_context(cafile=str(new.path)) for name in ("old", "new")}
    clients["old"].load_cert_chain(*old.issue("client-old"))
    clients["new"].load_cert_chain(*new.issue("client-new"))

    def greet(port: int, name: str, session: ssl.SSLSession | None = None) -> tuple[bytes, ssl.SSLSession | None]:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            try:
                with clients[name].wrap_socket(plain, server_hostname="127.0.0.1", session=session) as link:
                    return link.recv(5), link.session
            except OSError:  # the server's alert: with TLS 1.3 it comes after the client's own handshake
                return b"", None

    async def main() -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
            listener = Listener(sock, Greeter, lambda: tls.context, 5.0)
            said, session = await asyncio.to_thread(greet, port, "old")
            assert (said, session is None) == (b"hello", False)
            both.write_bytes(new.path.read_bytes())
            tls.refresh()
            for kept in (None, session):
                assert (await asyncio.to_thread(greet, port, "old", kept))[0] == b""
            assert (await asyncio.to_thread(greet, port, "new"))[0] == b"hello"
            both.write_text("no certificate")
            tls.refresh()
            assert (await asyncio.to_thread(greet, port, "new"))[0] == b"hello"
            listener.close()

    uvloop.run(main())


def test_grpc_keeps_the_files_that_were_found_good(tmp_path: Path) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    cert, key = map(str, old.issue("server"))
    ca = tmp_path / "ca.pem"
    ca.write_bytes(old.path.read_bytes())
    tls = Tls(cert, key, str(ca))
    fetches: list[Callable[[], object]] = []
    grpc = SimpleNamespace(
        ssl_server_certificate_configuration=lambda pairs, roots: (*pairs, roots),
        dynamic_ssl_server_credentials=lambda first, fetch, **_: fetches.append(fetch),
    )
    tls.grpc_credentials(grpc)
    before = fetches[0]()
    for text in ("broken", None):
        ca.write_text(text) if text else ca.unlink()
        tls.refresh()
        assert fetches[0]() is before
    ca.write_bytes(new.path.read_bytes())
    tls.refresh()
    assert fetches[0]() == ((Path(key).read_bytes(), Path(cert).read_bytes()), new.path.read_bytes())


def test_a_pipe_is_no_certificate_and_no_token(tmp_path: Path) -> None:
    cert, key = Authority(tmp_path, "ca").issue("server")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for files in ((pipe, key, ""), (cert, pipe, ""), (cert, key, pipe)):
        with pytest.raises(UsageError, match="no regular file"):
            Tls(*map(str, files))
    with pytest.raises(UsageError, match="no regular file"):
        read_token(pipe)
