"""Two router processes on one port: one table, one set of replicas, and either may die."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.core.errors import Conflict, ServingError
from orchestrator.serving.admin import RouterAdmin
from orchestrator.serving.table import RoutingTable
from tests.support.serving_site import Load, ServingSite, generation, scale_bundle

_made: dict[int, Any] = {}
"""Bundles by the generation that they became."""
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("routers")


@pytest.fixture(scope="module")
def site(folder: Path) -> Generator[ServingSite]:
    site = ServingSite(folder / "site", routers=2)
    try:
        site.start_router()
        site.start_agent()
        _made[1] = scale_bundle(folder / "one", 2.0)
        site.serve("double", generation(1, _made[1]))
        yield site
    finally:
        site.stop()


def _pids(site: ServingSite) -> dict[int, int]:
    return {row["router"]: row["pid"] for row in site.admin.status()["routers"]}


def _connection_to(site: ServingSite, number: int) -> http.client.HTTPConnection:
    """Connect until the kernel gives us the asked router; it says who it is by the events it has."""
    with RouterAdmin(site.short / ("admin.sock" if number == 0 else f"admin-{number}.sock")) as admin:
        for _ in range(64):
            connection = http.client.HTTPConnection(site.url.removeprefix("http://"), timeout=20)
            before = _own_events(admin, number)
            assert _ask(connection) == 200
            if _own_events(admin, number) > before:
                return connection
            connection.close()
    raise AssertionError(f"64 connections, none to router {number}")


def _own_events(admin: RouterAdmin, number: int) -> int:
    events = admin.events(limit=10_000)["events"]
    return sum(1 for event in events if event.get("router", number) == number)


def _ask(connection: http.client.HTTPConnection) -> int:
    connection.request("POST", "/v2/models/double/infer", BODY, {"content-type": "application/json"})
    response = connection.getresponse()
    response.read()
    return response.status


def test_the_lead_speaks_for_both(site: ServingSite) -> None:
    connections = [_connection_to(site, number) for number in (0, 1)]
    last = site.admin.events(limit=10_000)["last"]
    for _ in range(5):
        assert [_ask(connection) for connection in connections] == [200, 200]
    found = site.admin.events(after=last)
    assert sorted(event["router"] for event in found["events"]) == [0] * 5 + [1] * 5
    assert site.admin.events(after=found["last"])["events"] == []
    status = site.admin.status()
    assert [row["router"] for row in status["routers"]] == [0, 1]
    assert len({row["version"] for row in status["routers"]}) == 1
    assert [row["routers"] for row in status["replicas"]] == [[0, 1]]
    metrics = site.admin.metrics()
    assert metrics.count("# TYPE orchestrate_requests_total") == 1
    for number in (0, 1):
        assert f'orchestrate_table_version{{router="{number}"}} {status["version"]}' in metrics
    for connection in connections:
        connection.close()


def test_only_the_lead_takes_the_table(site: ServingSite) -> None:
    with RouterAdmin(site.short / "admin-1.sock") as admin:
        assert admin.table() == site.admin.table()
        with pytest.raises(Conflict, match="router 0 takes the table"):
            admin.put_table(RoutingTable(99))


def test_a_change_of_the_table_under_load_loses_nothing(site: ServingSite, folder: Path) -> None:
    load = Load(site.url, "double", clients=8)
    try:
        for number, factor in ((2, 3.0), (3, 4.0)):
            old = site.admin.table().endpoints["double"].generations[-1].generation
            before = generation(old, _made[old], weight=100)
            _made[number] = scale_bundle(folder / f"of-{number}", factor)
            site.serve("double", before, generation(number, _made[number], weight=0, state="staged"))
            site.serve("double", generation(number, _made[number]))
            switched = len(load.answers)
            ServingSite.wait(lambda since=switched: len(load.answers) > since + 50, 10, "answers")
    finally:
        load.stop()
    assert load.failures == []
    assert {number for number, _ in load.answers} == {1, 2, 3}
    assert all(value == number + 1 for number, value in load.answers), "each answer is its generation's"
    assert {number for number, _ in load.answers[-16:]} == {3}


def test_a_lazy_model_is_loaded_and_unloaded_at_every_router(site: ServingSite, folder: Path) -> None:
    site.start_agent("agent-lazy", pool="lazy", models="lazy")
    site.serve("seldom", generation(1, scale_bundle(folder / "seldom", 2.0)), pool="lazy")
    transport = httpx.HTTPTransport(uds=str(site.short / "admin.sock"))
    with httpx.Client(transport=transport, base_url="http://router", timeout=20) as admin:
        for verb in ("load", "unload", "unload", "load"):
            answer = admin.post(f"/v2/repository/models/seldom/{verb}")
            assert answer.json() == {"name": "seldom", "load": verb == "load"}
            assert bool(site.replica_pids("seldom")) == (verb == "load")


def _evidence(site: ServingSite) -> dict[int, dict[str, Any]]:
    return {row["router"]: row for row in site.admin.evidence("double")["routers"]}


def _requests(evidence: dict[str, Any], traffic: str) -> dict[int, int]:
    found: dict[int, int] = {}
    for row in evidence["arms"]:
        if row["traffic"] == traffic:
            found[row["generation"]] = found.get(row["generation"], 0) + row["requests"]
    return found


def test_evidence_is_told_router_by_router(site: ServingSite, folder: Path) -> None:
    before = generation(1, scale_bundle(folder / "stable", 2.0), weight=50)
    site.serve("double", before, generation(7, scale_bundle(folder / "canary", 2.0), weight=50, state="staged"))
    table = site.admin.table().to_json()
    table["endpoints"]["double"]["split"] = {"stable": 1, "canary": 7, "mirror": 100}  # type: ignore[index]
    site.version = site.admin.put_table({**table, "version": site.version + 1})
    for number in (0, 1):
        connection = _connection_to(site, number)
        seen = _requests(_evidence(site)[number], "weighted")
        assert [_ask(connection) for _ in range(60)] == [200] * 60
        row = _evidence(site)[number]
        found = {g: count - seen.get(g, 0) for g, count in _requests(row, "weighted").items()}
        assert sum(found.values()) == 60
        assert row["failures_in_row"] == {"1": 0, "7": 0}
        assert row["version"] == site.version
        body = BODY.replace("1, 1, 1, 1", "1, 1, 1, 3e38")
        connection.request("POST", "/v2/models/double/versions/7/infer", body, {"content-type": "application/json"})
        assert connection.getresponse().status == 500, "JSON carries no infinity"
        connection.close()
        (bad,) = [arm for arm in _evidence(site)[number]["arms"] if arm["traffic"] == "version"]
        assert (bad["requests"], bad["errors"], bad["nonfinite"], bad["weight"]) == (1, {"non_finite": 1}, 1, 50)
        ServingSite.wait(lambda n=number: (_evidence(site)[n]["pairs"] or {"n": 0})["n"] > 0, 20, "pairs")
        pairs = _evidence(site)[number]["pairs"]
        assert pairs["agree"] == pairs["n"] == pairs["top1"]
        assert pairs["max_abs"] == 0
    assert len({row["boot"] for row in _evidence(site).values()}) == 2
    assert 'orchestrate_canary_odd_outputs_total{router="1",endpoint="double",generation="7"' in site.admin.metrics()
    assert {"weighted", "mirror", "version"} <= {
        event["traffic"] for event in site.admin.events(limit=10_000)["events"]
    }
    with pytest.raises(ServingError, match="no endpoint 'other'"):
        site.admin.evidence("other")


def _whole(site: ServingSite) -> bool:
    replicas = site.admin.status()["replicas"]
    return len(replicas) > 0 and all(row["routers"] == [0, 1] for row in replicas)


@pytest.mark.parametrize("victim", [1, 0])
def test_either_router_may_be_killed(site: ServingSite, victim: int) -> None:
    other = _connection_to(site, 1 - victim)
    told = _evidence(site)
    pid = _pids(site)[victim]
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        assert _ask(other) == 200, "requests at the other router never notice"
    process = site.followers.pop(victim) if victim else site.router
    assert process is not None
    process.wait(5)
    with httpx.Client(base_url=site.url, timeout=5) as client:
        headers = {"content-type": "application/json"}
        assert client.post("/v2/models/double/infer", content=BODY, headers=headers).status_code == 200
    if victim:
        site.start_follower(victim)
    else:
        site.start_router()
    ServingSite.wait(lambda: _whole(site), 10, "both again")
    assert _pids(site)[victim] != pid
    again = _connection_to(site, victim)
    assert _ask(again) == 200
    assert _ask(other) == 200
    after = _evidence(site)
    assert after[1 - victim]["boot"] == told[1 - victim]["boot"]
    assert after[victim]["boot"] != told[victim]["boot"], "counts that begin anew can be told from those that go on"
    assert not _requests(after[victim], "version")
    again.close()
    other.close()
