"""One real site, walked through its life: the tests of this file run in order and share it."""

import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from orchestrator.cluster.capacity import find_shortage
from orchestrator.cluster.local import LocalPool, LocalSite, down, driver_environment, status, up
from orchestrator.cluster.ray_rest import RayRest, TokenRefused
from orchestrator.cluster.sweep import end_site, site_processes
from orchestrator.core.errors import Conflict
from orchestrator.serving.admin import RouterAdmin

UP_S = 100
STARTER = """
import sys
from pathlib import Path
from orchestrator.cluster.local import LocalPool, LocalSite, up
up(LocalSite("local", Path(sys.argv[1]), {"edge": LocalPool(2, True, "Ascend310P3")}), timeout_s=100, wait_for=("router",))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site that another command started and left; Ray settings of another cluster stand in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_ADDRESS", "192.0.2.9:6379")
        found = LocalSite("local", tmp_path_factory.mktemp("state"), {"edge": LocalPool(2, True, "Ascend310P3")})
        subprocess.run([sys.executable, "-c", STARTER, str(found.state)], check=True, timeout=60)
        yield found
        assert end_site(found.id, None, grace_s=0.5) == []
        assert list(home.iterdir()) == []


def until(condition, what, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"never: {what}")


def agents(found):
    with RouterAdmin(Path(found.router_admin)) as admin:
        return [row for row in admin.status()["agents"] if row["pool"] == "edge"]


def test_ray_takes_drivers_before_the_agents_are_there(site):
    found = up(site, timeout_s=UP_S, wait_for=("ray",))
    assert found.parts["ray"] == "up"
    code = "import ray; ray.init(log_to_driver=False); print(ray.cluster_resources()['ascend_sim_edge'])"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    told = subprocess.run(
        [sys.executable, "-c", code], env=env | driver_environment(found), capture_output=True, text=True, timeout=60
    )
    assert told.stdout == "2.0\n", told.stderr


def test_every_part_comes_up(site):
    found = up(site, timeout_s=UP_S)
    assert found.state == "up"
    assert set(found.parts.values()) == {"up"}
    assert set(found.pids) == {"supervisor", "ray", "router"}
    assert (found.pools["edge"].agents_ready, found.pools["edge"].device) == (2, "cpu (rehearsal)")
    assert {row["slot"] for row in agents(found)} == {0, 1}
    assert httpx.get(f"{found.router_url}/v2/health/live", trust_env=False).status_code == 200
    with grpc.insecure_channel(found.router_grpc) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
    assert all(value and "token" not in value for value in (found.ray_address, found.dashboard_url, found.router_url))


def test_up_again_changes_nothing_and_is_quick(site):
    before, start = status(site), time.monotonic()
    assert up(site) == before
    assert time.monotonic() - start < 0.3


def test_other_pools_are_refused_while_it_is_up(site):
    with pytest.raises(Conflict, match="other slots"):
        up(LocalSite(site.name, site.state, {"edge": LocalPool(5, True, "Ascend310P3")}))


def test_ray_answers_nobody_without_its_token(site, tmp_path):
    found = status(site)
    paths = ["/api/version", "/api/serve/applications/", "/api/v0/nodes", "/api/jobs/"]
    assert {httpx.get(found.dashboard_url + path, trust_env=False).status_code for path in paths} == {401}
    wrong = {"Authorization": "Bearer " + "0" * 64}
    assert httpx.get(found.dashboard_url + "/api/version", headers=wrong, trust_env=False).status_code == 403
    (tmp_path / "wrong").write_text("0" * 64)
    with RayRest(found.dashboard_url, tmp_path / "wrong") as rest, pytest.raises(TokenRefused):
        rest.version()
    with RayRest(found.dashboard_url, Path(found.ray_token_path)) as rest:
        assert rest.version().session
        nodes = rest.nodes()
    assert find_shortage(nodes, {"ascend_sim_edge": 1}, 2) is None
    short = find_shortage(nodes, {"ascend_sim_edge": 1}, 3)
    assert short is not None
    assert short.fits == 2


def test_everything_listens_on_loopback_only(site):
    wide = [
        (process.name(), connection.laddr)
        for identity in site_processes(site.id)
        for process in [psutil.Process(identity.pid)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and not _is_loopback(connection.laddr.ip)
    ]
    assert wide == []


def _is_loopback(text):
    address = ipaddress.ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_the_token_is_in_no_environment_no_command_line_no_record(site):
    token = site.token_path.read_text()
    assert len(token) == 64
    assert site.token_path.stat().st_mode & 0o777 == 0o600
    for identity in site_processes(site.id):
        assert token.encode() not in Path(f"/proc/{identity.pid}/environ").read_bytes()
        assert token.encode() not in Path(f"/proc/{identity.pid}/cmdline").read_bytes()
    texts = [path for path in site.folder.rglob("*") if path.is_file() and path != site.token_path]
    assert [path for path in texts if token in path.read_text(errors="replace")] == []


def test_a_killed_router_returns_with_its_address_and_its_agents(site):
    before = status(site)
    os.kill(before.pids["router"], signal.SIGKILL)
    after = until(
        lambda: (s := status(site)).state == "up" and s.pids["router"] != before.pids["router"] and s, "router"
    )
    assert after.router_url == before.router_url
    assert after.pids["ray"] == before.pids["ray"]
    until(lambda: len(agents(after)) == 2, "agents dial again")


def test_a_killed_raylet_takes_ray_down_and_all_of_it_returns(site):
    before = status(site)
    raylet = next(p.pid for p in site_processes(site.id) if psutil.Process(p.pid).name() == "raylet")
    os.kill(raylet, signal.SIGKILL)
    until(lambda: status(site).state == "degraded", "degraded")
    after = up(site, timeout_s=UP_S)
    assert after.pids["router"] == before.pids["router"]
    assert after.pids["ray"] != before.pids["ray"]
    assert len(agents(after)) == 2


def test_after_a_killed_supervisor_up_starts_over(site):
    before = status(site)
    os.kill(before.pids["supervisor"], signal.SIGKILL)
    assert until(lambda: (s := status(site)).state == "degraded" and s, "degraded").parts["supervisor"] == "down"
    assert httpx.get(f"{before.router_url}/v2/health/live", trust_env=False).status_code == 200
    after = up(site, timeout_s=UP_S)
    assert after.state == "up"
    assert after.router_url == before.router_url
    assert not psutil.pid_exists(before.pids["ray"])


def test_down_leaves_nothing_running(site):
    before = status(site)
    down(site)
    assert site_processes(site.id) == []
    assert status(site).state == "down"
    ports = {int(url.rpartition(":")[2]) for url in (before.ray_address, before.dashboard_url, before.router_url)}
    listening = {c.laddr.port for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert ports & listening == set()
    assert not site.runtime.exists()
    assert not any(path.exists() for path in (site.lock_path, site.token_path, site.record_path))
    down(site)
    assert json.dumps(status(site).to_json())
