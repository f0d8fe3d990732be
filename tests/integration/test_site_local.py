"""One real site, walked through its life: the tests of this file run in order and share it."""

import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from support.npu_machine import install_cann, write_recipe
from support.serving_site import Load, generation, slow_bundle

from orchestrator.app.endpoints import infer_once, list_endpoints
from orchestrator.app.run import RunRequest, Watch, run
from orchestrator.app.wiring import open_workplace
from orchestrator.cluster.capacity import find_shortage
from orchestrator.cluster.local import LocalPool, LocalSite, down, driver_environment, status, up
from orchestrator.cluster.pool import ScaleRule
from orchestrator.cluster.ray_rest import RayRest, TokenRefused
from orchestrator.cluster.sweep import end_site, site_processes
from orchestrator.core.errors import Conflict
from orchestrator.serving.admin import RouterAdmin

UP_S = 100
ENVIRONMENT = """\
environment: 1
state: {state}
tracking: {{uri: none}}
sites: {{local: {{kind: local, allow_cpu: true}}}}
pools:
  edge: {{site: local, soc: Ascend310P3, rehearsal: true, slots: 2}}
  npu: {{site: local, soc: Ascend310P3}}
  burst:
    site: local
    soc: Ascend310P3
    rehearsal: true
    slots: 2
    autoscale: {{target_queue: 1, up_after: 0.5, down_after: 1}}
tools: {{{tools}}}
"""
DEVICES = [Path("/dev/davinci0")]
POOLS = {
    "edge": LocalPool(2, True, "Ascend310P3"),
    "npu": LocalPool(1, False, "Ascend310P3"),
    "burst": LocalPool(2, True, "Ascend310P3", scale=ScaleRule(1, 2, 1.0, 0.5, 1.0)),
}
STARTER = """
import json, sys
from pathlib import Path
from orchestrator.cluster import local
from orchestrator.cluster.pool import LocalPool
local.npu_devices = lambda: [Path("/dev/davinci0")]
pools = {name: LocalPool.from_json(pool) for name, pool in json.loads(sys.argv[2]).items()}
site = local.LocalSite("local", Path(sys.argv[1]), pools, json.loads(sys.argv[3]))
local.up(site, timeout_s=100, wait_for=("router",))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site that another command started and left; Ray settings of another cluster stand in the environment.

    There is no NPU here: its device file is made up, and pyACL and ATC are fakes.
    """
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_ADDRESS", "192.0.2.9:6379")
        patch.setattr("orchestrator.cluster.local.npu_devices", lambda: DEVICES)
        patch.setattr("orchestrator.cluster.devices.npu_devices", lambda: DEVICES)
        tools = install_cann(tmp_path_factory.mktemp("machine") / "cann")
        found = LocalSite("local", tmp_path_factory.mktemp("state"), POOLS, tools)
        asked = [str(found.state), json.dumps(found.pools_json()), json.dumps(tools)]
        subprocess.run([sys.executable, "-c", STARTER, *asked], check=True, timeout=60)
        yield found
        assert end_site(found.id, None, grace_s=0.5) == []
        left = {path.relative_to(home).parts[:2] for path in home.rglob("*")} - {(".cache",)}
        assert left <= {(".cache", "Microsoft")}, "onnxruntime keeps a folder of its own; we nothing"


@pytest.fixture
def less(site):
    """The site with its first pool only: quicker to start again."""
    return replace(site, pools={"edge": POOLS["edge"]})


def until(condition, what, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"never: {what}")


def agents(found, pool="edge"):
    with RouterAdmin(Path(found.router_admin)) as admin:
        return [row for row in admin.status()["agents"] if row["pool"] == pool]


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
    assert [(row["device"], row["soc"]) for row in agents(found, "npu")] == [("Ascend310P3", "Ascend310P3")]
    assert len(agents(found, "burst")) == 1, "a pool that scales begins with as few slots as it may hold"
    assert httpx.get(f"{found.router_url}/v2/health/live", trust_env=False).status_code == 200
    with grpc.insecure_channel(found.router_grpc) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
    assert all(value and "token" not in value for value in (found.ray_address, found.dashboard_url, found.router_url))


def test_an_om_is_compiled_and_served_from_the_pool_of_real_devices(site, tmp_path):
    """The whole path on the fakes of ATC and pyACL; Ray gives the agent its device, set_env.sh the replica its pyACL."""
    tools = ", ".join(f"{name}: {path}" for name, path in site.tools.items())
    environment = tmp_path / "machine.yaml"
    environment.write_text(ENVIRONMENT.format(state=site.state, tools=tools))
    report = run(RunRequest(write_recipe(tmp_path / "scale"), environment), Watch(silent, silent, silent))
    deployed = report.endpoint
    assert (deployed["device"], deployed["runtime"], deployed["pool"]) == ("Ascend310P3", "om", "npu")
    answer = infer_once(open_workplace(environment), "scale", None)
    (move,) = report.moves
    assert (move["target"], move["compiled"], answer["device"]) == ("npu", True, "Ascend310P3")
    (replica,) = agents(status(site), "npu")[0]["replicas"]
    variables = psutil.Process(replica["pid"]).environ()
    assert (variables["ASCEND_RT_VISIBLE_DEVICES"], variables["FAKE_CANN"]) == ("0", "yes")
    assert list_endpoints(open_workplace(environment))[0]["device"] == "Ascend310P3"
    with httpx.Client(base_url=status(site).router_url, trust_env=False) as client:
        row = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        told = client.post("/v2/models/scale/infer", json={"inputs": [row]})
    assert told.json()["outputs"][0]["data"] == [2, 4, 6, 8]
    assert told.headers["x-orchestrate-device"] == "Ascend310P3"


def silent(*_):
    return None


def test_a_pool_takes_slots_when_requests_wait_and_gives_them_back(site, tmp_path):
    found = status(site)
    bundle = slow_bundle(tmp_path / "slow")
    with RouterAdmin(Path(found.router_admin)) as admin:
        table = admin.table().to_json()
        rows = {**table["endpoints"], "slow": {"pool": "burst", "generations": [generation(1, bundle)]}}
        admin.put_table({"version": table["version"] + 1, "endpoints": rows})
        admin.wait_ready("slow", 1, 30)
        load = Load(found.router_url, "slow", clients=6)
        try:
            until(lambda: len(agents(found, "burst")) == 2, "a second slot")
            until(lambda: admin.wait_ready("slow", 1, 30)["ready"] == 2, "a replica on it")
        finally:
            load.stop()
        until(lambda: len(agents(found, "burst")) == 1, "the slot goes back")
        rows.pop("slow")
        admin.put_table({"version": table["version"] + 2, "endpoints": rows})
    assert load.failures == []
    assert len(load.answers) > 20


def test_up_again_changes_nothing_and_is_quick(site):
    before, start = status(site), time.monotonic()
    assert up(site) == before
    assert time.monotonic() - start < 3


def test_other_pools_are_refused_while_it_is_up(site):
    with pytest.raises(Conflict, match="other slots"):
        up(LocalSite(site.name, site.state, {**POOLS, "edge": LocalPool(5, True, "Ascend310P3")}))


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


def test_after_a_killed_supervisor_up_starts_over_with_what_is_asked_then(site, less):
    before = status(site)
    os.kill(before.pids["supervisor"], signal.SIGKILL)
    assert until(lambda: (s := status(site)).state == "degraded" and s, "degraded").parts["supervisor"] == "down"
    assert httpx.get(f"{before.router_url}/v2/health/live", trust_env=False).status_code == 200
    after = up(less, timeout_s=UP_S)
    assert (after.state, set(after.pools)) == ("up", {"edge"})
    assert after.router_url == before.router_url
    assert not psutil.pid_exists(before.pids["ray"])


def test_a_killed_raylet_takes_ray_down_and_all_of_it_returns(site, less):
    before = status(site)
    raylet = next(p.pid for p in site_processes(site.id) if psutil.Process(p.pid).name() == "raylet")
    os.kill(raylet, signal.SIGKILL)
    until(lambda: status(site).state == "degraded", "degraded")
    after = up(less, timeout_s=UP_S)
    assert after.pids["router"] == before.pids["router"]
    assert after.pids["ray"] != before.pids["ray"]
    assert len(agents(after)) == 2


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
