"""A replica behind a relay, as on another host: TLS and a token in front of the link."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.core.errors import UsageError
from orchestrator.core.processes import end_processes
from orchestrator.serving.client import OipClient
from orchestrator.serving.link.frames import Kind, encode
from orchestrator.serving.link.remote import first_line, read_token
from tests.support.certificates import Authority
from tests.support.serving_site import DEVICE, ServingSite, generation, scale_bundle

TOKEN = "t" * 64


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "link.token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, ours: Authority, token_file: Path) -> Generator[ServingSite]:
    folder = tmp_path_factory.mktemp("remote")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cert, key = ours.issue("router")
    site = ServingSite(
        folder / "site", link_port=port, link_token_file=str(token_file), tls_cert=str(cert), tls_key=str(key)
    )
    try:
        site.start_router()
        yield site
    finally:
        site.stop()


def _dial(site: ServingSite, ours: Authority, first: bytes) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(ours.path))
    link = socket.create_connection(("127.0.0.1", int(str(site.settings["link_port"]))), 5)
    tls = context.wrap_socket(link, server_hostname="127.0.0.1")
    tls.sendall(first)
    return tls


def test_a_replica_behind_the_relay_serves(
    site: ServingSite, ours: Authority, token_file: Path, tmp_path: Path
) -> None:
    near = str(site.short / "near.sock")
    config: dict[str, object] = {
        "routers": [f"127.0.0.1:{site.settings['link_port']}"],
        "sockets": [near],
        "token_file": str(token_file),
        "ca": str(ours.path),
        "parent_pid": os.getpid(),
    }
    relay = site._spawn("link.relay", config, "relay")
    try:
        site.start_agent(link=near)
        site.serve("double", generation(1, scale_bundle(tmp_path / "double", 2.0)))
        with OipClient(site.url, socket=site.short / "admin.sock") as client:
            for rows in (1, 3, 32):
                x = np.full((rows, 4), rows, np.float32)
                assert np.array_equal(client.infer("double", {"x": x}).outputs["y"], x * 2)
    finally:
        end_processes([relay.pid], grace_s=5)
        relay.wait(5)
    ServingSite.wait(lambda: site.admin.status()["replicas"] == [], 5, "the replica is gone with its relay")


@pytest.mark.parametrize(
    "first", [b"OL-TOKEN wrong\n", first_line("u" * 64), encode(Kind.HELLO, {"role": "agent"}), b"x" * 300, b"\n"]
)
def test_without_the_token_the_link_is_shut(site: ServingSite, ours: Authority, first: bytes) -> None:
    hello = {"role": "agent", "pool": "edge", "slot": 0, "device": DEVICE, "pid": 1, "host": "there"}
    with _dial(site, ours, first) as link:
        try:
            link.sendall(encode(Kind.HELLO, hello))
            assert link.recv(100) == b""
        except OSError:
            pass
    assert site.admin.status()["agents"] == []


def test_with_the_token_the_link_is_the_link(site: ServingSite, ours: Authority) -> None:
    hello = {"role": "agent", "pool": "lone", "slot": 0, "device": DEVICE, "pid": 1, "host": "there"}
    line = first_line(TOKEN)
    with _dial(site, ours, line[:5]) as link:
        time.sleep(0.05)
        link.sendall(line[5:] + encode(Kind.HELLO, hello))
        assert link.recv(100).startswith(b"OL")
        assert [row["pool"] for row in site.admin.status()["agents"]] == ["lone"]


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o640)
    with pytest.raises(UsageError, match="others can read the link's token: mode 640"):
        read_token(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(UsageError, match="5 characters, at least 32"):
        read_token(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"link_port": 5}, "needs link_token_file"),
        (
            {"host": "0.0.0.0", "tokens_file": "t", "link_port": 5, "link_token_file": "t"},
            "refuses links from other hosts on '0.0.0.0' in plain text",
        ),
    ],
)
def test_a_link_that_others_could_read_is_refused(tmp_path: Path, change: dict[str, object], text: str) -> None:
    site = ServingSite(tmp_path / "site", **change)
    try:
        with pytest.raises(AssertionError, match=text):
            site.start_router()
    finally:
        site.stop()
