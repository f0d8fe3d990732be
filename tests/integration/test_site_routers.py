"""The supervisor's routers: they come up together, each comes back when it ends, and the ports stay."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import httpx
import pytest

from orchestrator.cluster.local import up
from orchestrator.cluster.routers import RouterChild, make_routers, routers_state
from orchestrator.cluster.serve_config import admin_socket, serve_document
from orchestrator.cluster.serving import LocalServing
from orchestrator.cluster.site import LocalPool, LocalSite, open_runtime
from orchestrator.core.errors import InfraError, UsageError
from orchestrator.core.files import private_folder
from orchestrator.core.processes import end_processes
from orchestrator.serving.admin import RouterAdmin
from orchestrator.serving.router.auth import add_token
from orchestrator.serving.table import RoutingTable


@pytest.fixture
def site(tmp_path: Path) -> Generator[LocalSite]:
    tokens = tmp_path / "tokens"
    add_token(tokens, "a")
    site = LocalSite("local", tmp_path, serving=LocalServing(routers=2, tokens_file=str(tokens)))
    private_folder(site.folder)
    private_folder(site.logs)
    open_runtime(site.runtime)
    yield site
    shutil.rmtree(site.runtime)


@pytest.fixture
def routers(site: LocalSite) -> Generator[Sequence[RouterChild]]:
    routers = make_routers(site)
    yield routers
    end_processes([router.identity.pid for router in routers if router.identity is not None], grace_s=8)


def _until(routers: Sequence[RouterChild], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, [router.error for router in routers]
        for router in routers:
            router.tick()
        time.sleep(0.02)


def _all_up(routers: Sequence[RouterChild]) -> bool:
    return routers_state(routers) == "up"


def test_routers_come_back_on_their_ports_with_the_table(site: LocalSite, routers: Sequence[RouterChild]) -> None:
    lead, other = routers
    _until(routers, lambda: _all_up(routers))
    url = lead.url
    assert other.url == url
    assert other.grpc == lead.grpc
    with RouterAdmin(admin_socket(site)) as admin:
        admin.put_table(RoutingTable(7))
        for victim in routers:
            assert victim.identity is not None
            before = victim.identity
            os.kill(before.pid, signal.SIGKILL)
            _until(routers, lambda v=victim, b=before: v.identity != b and _all_up(routers))
            assert [row["version"] for row in admin.status()["routers"]] == [7, 7]
    assert lead.url == url
    for _ in range(8):
        assert httpx.get(f"{url}/v2/health/live", trust_env=False).status_code == 200
        assert httpx.get(f"{url}/v2", trust_env=False).status_code == 401


def test_a_router_that_hangs_is_ended(routers: Sequence[RouterChild], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cluster.routers.SILENT_S", 0.5)
    monkeypatch.setattr("orchestrator.cluster.pulse._EVERY_S", 0.1)
    _until(routers, lambda: _all_up(routers))
    hung = routers[1].identity
    assert hung is not None
    os.kill(hung.pid, signal.SIGSTOP)
    _until(routers, lambda: routers[1].identity != hung and _all_up(routers))
    assert not hung.alive()


def test_replicas_are_told_every_link(site: LocalSite) -> None:
    pooled = LocalSite(site.name, site.state, {"edge": LocalPool()}, serving=site.serving)
    args = serve_document(pooled)["applications"][0]["args"]
    assert [Path(path).name for path in (args["link"], *args["links"])] == ["link.sock", "link-1.sock"]


def test_a_fixed_port_must_be_free(site: LocalSite) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        taken = LocalSite(site.name, site.state, serving=LocalServing(routers=2, port=port))
        with pytest.raises(InfraError, match=f"cannot listen on 127.0.0.1:{port}"):
            make_routers(taken)[0].tick()


def test_a_site_with_broken_guards_does_not_begin(tmp_path: Path) -> None:
    site = LocalSite("local", tmp_path, serving=LocalServing(tokens_file=str(tmp_path / "none")))
    with pytest.raises(UsageError, match="cannot read the tokens"):
        up(site)
    assert not site.folder.exists()
