"""kill -9 at every fault point of `up` and `down`, then the same command again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cluster.local import LocalSite, down, status, up
from orchestrator.cluster.sweep import end_site, site_processes
from orchestrator.core.errors import InfraError

CODE = """
import sys
from pathlib import Path
from orchestrator.cluster.local import LocalSite, down, up
site = LocalSite("local", Path(sys.argv[2]))
up(site, timeout_s=60, wait_for=("router",)) if sys.argv[1] == "up" else down(site)
"""
UP_POINTS = ["cluster.up.locked", "cluster.up.prepared", "cluster.up.spawned", "cluster.up.recorded"]
DOWN_POINTS = ["cluster.down.locked", "cluster.ended", "cluster.down.cleared"]


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = LocalSite("local", tmp_path / "state")
    yield found
    assert end_site(found.id, None, grace_s=0.2) == []


def killed(verb, site, point):
    log = Path(f"{site.state}.faults")
    env = os.environ | {"ORCHESTRATE_FAULT": f"{point}:kill", "ORCHESTRATE_FAULT_LOG": str(log)}
    done = subprocess.run([sys.executable, "-c", CODE, verb, str(site.state)], env=env, timeout=60)
    assert done.returncode == -9
    assert f"{point} fired" in log.read_text().splitlines()


@pytest.mark.parametrize(("up_point", "down_point"), zip(UP_POINTS, [*DOWN_POINTS, DOWN_POINTS[0]], strict=True))
def test_a_killed_command_is_finished_by_the_next(site, up_point, down_point):
    killed("up", site, up_point)
    found = up(site, timeout_s=60, wait_for=("router",))
    assert found.parts["router"] == "up"
    killed("down", site, down_point)
    down(site)
    assert site_processes(site.id) == []
    assert status(site).state == "down"
    assert not site.runtime.exists()
    assert not site.lock_path.exists()


def test_a_supervisor_that_dies_at_once_is_told_and_replaced(site, monkeypatch):
    env = os.environ | {"ORCHESTRATE_FAULT": "supervisor.recorded:kill"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, "up", str(site.state)], env=env, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "InfraError" in done.stderr
    assert up(site, timeout_s=60, wait_for=("router",)).pids["supervisor"]
    down(site)


def test_a_site_whose_folder_is_removed_ends_itself(site):
    import shutil
    import time

    up(site, timeout_s=60, wait_for=("router",))
    shutil.rmtree(site.state)
    deadline = time.monotonic() + 20
    while site_processes(site.id) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert site_processes(site.id) == []
    down(site)
    assert not site.runtime.exists()


def test_a_part_that_cannot_start_fails_up_with_its_own_words(site, monkeypatch):
    site.folder.mkdir(parents=True)
    (site.folder / "router").write_text("a file where the router wants its folder")
    with pytest.raises(InfraError, match="router"):
        up(site, timeout_s=30, wait_for=("router",))
    down(site)
