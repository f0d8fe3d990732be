"""Processes are killed under load: no request is lost, nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.serving_site import Load, ServingSite, generation, scale_bundle

from orchestrator.core.errors import Unreachable
from orchestrator.core.processes import ProcessIdentity, pids_with_environment

ONES = {"x": np.ones((1, 4), np.float32)}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ServingSite]:
    site = ServingSite(tmp_path / "site", env={**os.environ, "SERVING_TEST": str(tmp_path)})
    try:
        site.start_router()
        site.start_agent()
        site.serve("double", generation(1, scale_bundle(tmp_path / "double", 2.0)))
        yield site
    finally:
        site.stop()
    assert list(pids_with_environment("SERVING_TEST", str(tmp_path))) == []


def test_kill_9_of_replicas_loses_no_request(site: ServingSite) -> None:
    load = Load(site.url, "double")
    killed: set[int] = set()
    try:
        for _ in range(3):
            site.wait(lambda: set(site.replica_pids("double")) - killed, 10, "a new replica")
            before = len(load.answers)
            site.wait(lambda n=before: len(load.answers) > n + 20, 10, "answers")
            (pid,) = site.replica_pids("double")
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        # The agent notices a death on its own time: the count is read once the third successor serves.
        site.wait(lambda: set(site.replica_pids("double")) - killed, 10, "the third successor")
        site.wait(lambda: restarts(site) == 3, 10, "three restarts counted")
    finally:
        load.stop()
    assert load.failures == []
    assert set(load.answers) == {(1, 2.0)}
    assert restarts(site) == 3


def restarts(site: ServingSite) -> int:
    (agent,) = site.admin.status()["agents"]
    return agent["replicas"][0]["restarts"] if agent["replicas"] else 0


def test_two_slots_share_the_load_and_one_may_die(tmp_path: Path) -> None:
    site = ServingSite(tmp_path / "two")
    try:
        site.start_router()
        for name in ("agent-a", "agent-b"):
            site.start_agent(name, slots=2)
        site.serve("double", generation(1, scale_bundle(tmp_path / "double", 2.0)))
        site.wait(lambda: len(site.replica_pids("double")) == 2, 10, "two replicas")
        assert sorted(agent["slot"] for agent in site.admin.status()["agents"]) == [0, 1]
        load = Load(site.url, "double")
        try:
            site.wait(lambda: len(load.answers) > 50, 10, "answers")
            victim = site.agents[0]
            replicas = [ProcessIdentity.of(pid) for pid in site.replica_pids("double")]
            victim.kill()
            site.wait(lambda: len(site.replica_pids("double")) == 1, 5, "the dead agent's replica is gone")
            before = len(load.answers)
            site.wait(lambda: len(load.answers) > before + 50, 10, "answers")
        finally:
            load.stop()
        assert load.failures == []
        assert sum(r is not None and r.alive() for r in replicas) == 1
        names = {event["replica"] for event in site.admin.events(limit=10_000)["events"]}
        assert {name[:6] for name in names} == {"edge-0", "edge-1"}
        # The slot of the dead agent is free again.
        victim.wait()
        site.start_agent("agent-c", slots=2)
        site.wait(lambda: len(site.replica_pids("double")) == 2, 10, "two replicas again")
    finally:
        site.stop()


def test_a_router_restart_resumes(site: ServingSite) -> None:
    url, table, last = site.url, site.admin.table(), site.admin.events()["last"]
    replicas = site.replica_pids("double")
    assert site.router is not None
    site.router.kill()
    site.router.wait()
    with pytest.raises(Unreachable):
        site.client().infer("double", ONES)
    begun = time.monotonic()
    site.start_router()
    site.admin.wait_ready("double", 1, 10)
    assert time.monotonic() - begun < 5
    assert (site.url, site.admin.table()) == (url, table)
    assert site.replica_pids("double") == replicas  # the models stayed loaded
    with site.client() as client:
        assert client.infer("double", ONES).generation == 1
    events = site.admin.events(after=last)
    assert [event["status"] for event in events["events"]] == [200]
    site.wait(lambda: site.admin.status()["agents"], 5, "the agent is back")


def test_a_poisonous_request_takes_two_replicas_at_most(site: ServingSite) -> None:
    load = Load(site.url, "double", clients=1)
    try:
        for _ in range(2):
            site.wait(lambda: site.replica_pids("double"), 10, "a replica")
            (pid,) = site.replica_pids("double")
            os.kill(pid, signal.SIGSTOP)
            site.wait(lambda: site.admin.status()["replicas"][0]["in_flight"] == 1, 5, "the replica holds the request")
            os.kill(pid, signal.SIGKILL)
            site.wait(lambda p=pid: site.replica_pids("double") not in ([p], []), 10, "a new replica")
        site.wait(lambda: load.failures or len(load.answers) > 0, 10, "an answer")
    finally:
        load.stop()
    # The second replica may have answered before it was stopped; two deaths with one request end it.
    assert all(status == 503 and "two replicas ended" in text for status, text in load.failures)


def test_sigterm_ends_all_and_answers_what_is_there(site: ServingSite, tmp_path: Path) -> None:
    load = Load(site.url, "double", clients=2)
    site.wait(lambda: len(load.answers) > 20, 10, "answers")
    replica = ProcessIdentity.of(site.replica_pids("double")[0])
    assert replica is not None
    site.agents[0].terminate()
    assert site.agents[0].wait(10) == 0
    assert not replica.alive()
    assert site.router is not None
    site.router.terminate()
    assert site.router.wait(10) == 0
    load.stop()
    assert {status for status, _ in load.failures} <= {0, 503}
    assert not (tmp_path / "site" / "router" / "router.json").exists()


def test_a_damaged_table_is_not_served(tmp_path: Path) -> None:
    site = ServingSite(tmp_path / "site")
    (tmp_path / "site" / "router").mkdir(parents=True)
    (tmp_path / "site" / "router" / "table.json").write_text('{"version": 1')
    try:
        with pytest.raises(AssertionError, match="the stored table is damaged"):
            site.start_router()
    finally:
        site.stop()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"host": "0.0.0.0"}, "refuses to listen on '0.0.0.0'"),
        ({"host": "::"}, "refuses to listen"),
        ({"surplus": 1}, "settings have"),
        ({"port": "80"}, "port: '80' is no int"),
        ({"admin": "/" + "x" * 120}, "socket path"),
    ],
)
def test_settings_that_the_router_refuses(tmp_path: Path, change: dict[str, object], text: str) -> None:
    site = ServingSite(tmp_path / "site", **change)
    try:
        with pytest.raises(AssertionError) as caught:
            site.start_router()
        assert text in str(caught.value)
        assert site.router is not None
        assert site.router.wait(5) == 2
    finally:
        site.stop()


def test_the_agent_works_without_a_router_at_first(tmp_path: Path) -> None:
    site = ServingSite(tmp_path / "site")
    try:
        site.start_agent()
        time.sleep(0.3)
        site.start_router()
        site.serve("double", generation(1, scale_bundle(tmp_path / "double", 2.0)))
        state = json.loads((tmp_path / "site" / "router" / "table.json").read_text())
        assert state["version"] == 1
    finally:
        site.stop()
