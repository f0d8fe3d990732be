import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cluster.local import down, driver_environment, status, up
from orchestrator.cluster.site import (
    LocalPool,
    LocalSite,
    PoolStatus,
    SiteRecord,
    SiteStatus,
    live_status,
    open_runtime,
    read_record,
)
from orchestrator.core.errors import DeviceError, InfraError, UsageError
from orchestrator.core.processes import ProcessIdentity

OWN = ProcessIdentity.own()
DEAD = ProcessIdentity(OWN.pid, OWN.started_ticks - 1)
PARTS = {"supervisor": "up", "ray": "up", "router": "up", "serve": "up", "agents": "up"}


@pytest.fixture
def site(tmp_path):
    return LocalSite("local", tmp_path / "state", {"edge": LocalPool(2, True, "Ascend310P3")})


def record(site, processes, **parts):
    status = SiteStatus(
        site.name, "up", ray_address="127.0.0.1:1", pools={"edge": PoolStatus(2, "cpu", 2)}, parts={**PARTS, **parts}
    )
    return SiteRecord(site.id, status, site.pools_json(), processes)


def test_a_record_survives_writing_and_reading_and_is_private(site):
    written = record(site, {"supervisor": OWN})
    written.write(site.record_path)
    assert read_record(site.record_path) == written
    assert stat.S_IMODE(site.record_path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"version": 99}', '{"version": 1}', '{"version": 1, "status": 3}']
)
def test_a_damaged_record_reads_as_none(site, text):
    site.folder.mkdir(parents=True)
    site.record_path.write_text(text)
    assert read_record(site.record_path) is None
    assert status(site).state == "down"


def test_no_file_at_all_is_down(site):
    assert status(site).state == "down"
    assert not status(site).ready(["ray"])


def test_all_alive_is_up(site):
    found = live_status(record(site, {"supervisor": OWN, "ray": OWN, "router": OWN}), site)
    assert found.state == "up"
    assert found.ready(["ray", "router", "serve", "agents"])


def test_a_reused_pid_is_not_our_process(site):
    assert live_status(record(site, {"supervisor": DEAD, "ray": DEAD, "router": DEAD}), site).state == "down"


@pytest.mark.parametrize("dead", ["supervisor", "ray", "router"])
def test_a_dead_part_degrades_the_site(site, dead):
    processes = {"supervisor": OWN, "ray": OWN, "router": OWN, dead: DEAD}
    found = live_status(record(site, processes), site)
    assert found.state == "degraded"
    assert found.parts[dead] == "down"
    assert dead not in found.pids


def test_agents_do_not_outlive_ray(site):
    found = live_status(record(site, {"supervisor": OWN, "ray": DEAD, "router": OWN}), site)
    assert (found.parts["serve"], found.parts["agents"]) == ("down", "down")


def test_parts_that_come_up_are_starting_not_degraded(site):
    processes = {"supervisor": OWN, "ray": OWN, "router": OWN}
    assert live_status(record(site, processes, serve="starting", agents="starting"), site).state == "starting"
    assert live_status(record(site, processes, agents="failed"), site).state == "degraded"


def test_a_site_without_pools_needs_neither_serve_nor_agents(site):
    found = live_status(record(site, {"supervisor": OWN, "ray": OWN, "router": OWN}, serve="none", agents="none"), site)
    assert found.state == "up"
    assert found.ready(["serve", "agents"])


def test_status_is_one_json_object(site):
    text = json.dumps(record(site, {"supervisor": OWN}).status.to_json())
    assert json.loads(text)["pools"]["edge"]["agents_ready"] == 2


def test_the_id_depends_on_place_and_name_only(site, tmp_path):
    assert dataclasses.replace(site, pools={}).id == site.id
    assert dataclasses.replace(site, name="other").id != site.id
    assert LocalSite("local", tmp_path / "other").id != site.id


def test_socket_paths_fit_whatever_the_state_folder_is(tmp_path):
    deep = LocalSite("local", tmp_path / ("x" * 200))
    assert len(str(deep.runtime)) <= 32


def test_the_runtime_folder_is_private(tmp_path):
    found = open_runtime(Path(f"/tmp/orc-test-{os.getpid()}"))
    try:
        assert stat.S_IMODE(found.stat().st_mode) == 0o700
        assert open_runtime(found) == found
    finally:
        found.rmdir()


def test_a_link_in_place_of_the_runtime_folder_is_refused(tmp_path):
    trap = Path(f"/tmp/orc-trap-{os.getpid()}")
    trap.symlink_to(tmp_path)
    try:
        with pytest.raises(InfraError, match="not our own"):
            open_runtime(trap)
    finally:
        trap.unlink()


def test_a_pool_that_is_no_rehearsal_needs_an_npu(tmp_path):
    if list(Path("/dev").glob("davinci[0-9]*")):
        pytest.skip("this machine has an NPU")
    site = LocalSite("local", tmp_path, {"edge": LocalPool(1, False, "Ascend310P3")})
    with pytest.raises(DeviceError, match="davinci") as caught:
        up(site)
    assert "rehearsal" in caught.value.hint
    assert not site.folder.exists()


def test_a_name_that_would_leave_the_folder_is_refused(tmp_path):
    with pytest.raises(UsageError):
        up(LocalSite("../x", tmp_path))


def test_down_of_a_site_that_never_was_leaves_no_trace(site):
    down(site)
    assert not site.state.exists()


def test_the_driver_environment_names_paths_and_no_values(site):
    env = driver_environment(SiteStatus("local", ray_address="127.0.0.1:7", ray_token_path="/t"))
    assert env["RAY_ADDRESS"] == "127.0.0.1:7"
    assert env["RAY_AUTH_TOKEN_PATH"] == "/t"
    assert env["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in env


def test_status_imports_nothing_heavy_and_is_quick(site):
    record(site, {"supervisor": OWN}).write(site.record_path)
    code = (
        "import sys, time; from pathlib import Path; from orchestrator.cluster.local import LocalSite, status;"
        f"t = time.perf_counter(); s = status(LocalSite('local', Path({str(site.state)!r})));"
        "print(s.state, time.perf_counter() - t);"
        "print(sorted({'ray', 'httpx', 'pydantic', 'torch', 'sqlalchemy'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert told[0].startswith("degraded")
    assert float(told[0].split()[1]) < 0.05
    assert told[1] == "[]"
