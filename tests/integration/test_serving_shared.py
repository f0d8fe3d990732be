"""`isolation: shared`: models of one slot in one process; what one does to the others, and what it must not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.serving_site import Load, ServingSite, endless_bundle, generation, scale_bundle

STALL_S = 1.0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ServingSite]:
    site = ServingSite(tmp_path / "site")
    try:
        site.start_router()
        yield site
    finally:
        site.stop()


def shared(folder: Path, factor: float, **more: Any) -> Any:
    return scale_bundle(folder / f"times{factor:g}", factor, isolation="shared", **more)


def pid(site: ServingSite, endpoint: str) -> int:
    (found,) = site.replica_pids(endpoint)
    return found


def reports(site: ServingSite) -> dict[str, dict[str, Any]]:
    return {row["endpoint"]: row for agent in site.admin.status()["agents"] for row in agent["replicas"]}


def infer(site: ServingSite, name: str, value: float = 1.0, timeout_s: float = 20) -> httpx.Response:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [value] * 4}]}
    return httpx.post(f"{site.url}/v2/models/{name}/infer", json=body, timeout=timeout_s)


def test_models_come_and_go_in_one_process_and_nobody_notices(site: ServingSite, tmp_path: Path) -> None:
    site.start_agent()
    bundles = {f"m{factor}": shared(tmp_path, factor) for factor in (2, 3, 4)}
    site.serve("m2", generation(1, bundles["m2"]))
    first = pid(site, "m2")
    load = Load(site.url, "m2", clients=2)
    try:
        site.serve("m3", generation(1, bundles["m3"]))
        site.serve("m4", generation(1, bundles["m4"]))
        site.serve("own", generation(1, scale_bundle(tmp_path / "own", 7.0)))
        assert pid(site, "m2") == pid(site, "m3") == pid(site, "m4") == first
        assert pid(site, "own") != first
        for factor in (3, 4):
            answer = infer(site, f"m{factor}").json()
            assert answer["outputs"][0]["data"] == [factor] * 4
        endpoints = site.admin.table().to_json()["endpoints"]
        del endpoints["m3"]  # type: ignore[attr-defined]
        site.version = int(site.admin.table().to_json()["version"])  # type: ignore[arg-type]
        site.put(endpoints)  # type: ignore[arg-type]
        site.wait(lambda: "m3" not in reports(site), 10, "m3 has gone")
        seen = len(load.answers)
        site.wait(lambda: len(load.answers) > seen + 20, 10, "m2 serves on")
    finally:
        load.stop()
    assert load.failures == []
    assert set(load.answers) == {(1, 2.0)}
    assert pid(site, "m2") == pid(site, "m4") == first
    site.put({})
    site.wait(lambda: not Path(f"/proc/{first}").exists(), 10, "the process ends with its last model")


def test_a_load_that_fails_is_no_matter_of_the_others(site: ServingSite, tmp_path: Path) -> None:
    site.start_agent()
    site.serve("good", generation(1, shared(tmp_path, 2.0)))
    first = pid(site, "good")
    load = Load(site.url, "good", clients=2)
    try:
        bad = shared(tmp_path, 5.0, wrong_golden=True)
        table = site.admin.table().to_json()["endpoints"]
        site.put({**table, "bad": {"pool": "edge", "generations": [generation(1, bad)]}})  # type: ignore[dict-item]
        site.wait(lambda: reports(site).get("bad", {}).get("failures", 0) >= 2, 20, "bad fails, twice")
    finally:
        load.stop()
    assert "self-check" in reports(site)["bad"]["error"]
    assert load.failures == []
    assert pid(site, "good") == first
    assert reports(site)["good"]["restarts"] == 0


def test_killed_from_outside_all_come_back_together_and_no_request_is_lost(site: ServingSite, tmp_path: Path) -> None:
    site.start_agent()
    for factor in (2, 3):
        site.serve(f"m{factor}", generation(1, shared(tmp_path, factor)))
    first = pid(site, "m2")
    load = Load(site.url, "m2", clients=3)
    try:
        os.kill(first, signal.SIGKILL)
        site.wait(lambda: first not in (pids := site.replica_pids("m2")) and pids, 15, "m2 is back")
        site.wait(lambda: site.replica_pids("m3") == site.replica_pids("m2"), 15, "and m3 beside it")
        seen = len(load.answers)
        site.wait(lambda: len(load.answers) > seen + 20, 10, "traffic")
    finally:
        load.stop()
    assert load.failures == []
    assert set(load.answers) == {(1, 2.0)}


def test_who_hangs_the_process_runs_alone_afterwards(site: ServingSite, tmp_path: Path) -> None:
    site.start_agent(stall_s=STALL_S)
    for factor in (2, 3):
        site.serve(f"m{factor}", generation(1, shared(tmp_path, factor)))
    site.serve("endless", generation(1, endless_bundle(tmp_path / "endless", isolation="shared")))
    first = pid(site, "endless")
    assert first == pid(site, "m2") == pid(site, "m3")
    load = Load(site.url, "m2", clients=2)
    try:
        answer = infer(site, "endless", 1e9, timeout_s=30)
        assert answer.status_code in (503, 504), answer.text
        site.wait(lambda: site.replica_pids("endless") and site.replica_pids("m3"), 15, "all are back")
        site.wait(lambda: len({pid(site, name) for name in ("m2", "m3")}) == 1, 15, "the others share a process again")
        seen = len(load.answers)
        site.wait(lambda: len(load.answers) > seen + 20, 10, "traffic")
    finally:
        load.stop()
    assert load.failures == []
    after = pid(site, "m2")
    assert after != first
    assert pid(site, "endless") not in (first, after)
    assert infer(site, "endless", timeout_s=30).status_code == 200
    found = reports(site)
    assert found["m2"]["restarts"] == found["m3"]["restarts"] == 1
    assert found["m2"]["failures"] == found["m3"]["failures"] == 0


def test_a_canary_is_not_put_beside_what_it_is_compared_with(site: ServingSite, tmp_path: Path) -> None:
    site.start_agent()
    builds = [shared(tmp_path, factor) for factor in (2, 3, 4)]
    for name in ("m", "other"):
        site.serve(name, generation(1, builds[0]))
    first = pid(site, "m")
    for name in ("m", "other"):
        site.serve(name, generation(1, builds[0], weight=90), generation(2, builds[1], weight=10))
        assert len(set(site.replica_pids(name))) == 2
    (second,) = set(site.replica_pids("m")) - {first}
    assert set(site.replica_pids("m")) == set(site.replica_pids("other")), "the canaries share a second process"
    site.serve("m", generation(2, builds[1]))
    site.wait(lambda: site.replica_pids("m") == [second], 10, "the first build has gone")
    site.serve("m", generation(2, builds[1], weight=90), generation(3, builds[2], weight=10))
    assert set(site.replica_pids("m")) == {first, second}, "no third process"


def test_a_lazy_pool_counts_the_process_once(site: ServingSite, tmp_path: Path) -> None:
    site.start_agent(models="lazy", memory_bytes=1 << 30)
    table = {
        f"m{factor}": {"pool": "edge", "generations": [generation(1, shared(tmp_path, factor))]} for factor in (2, 3, 4)
    }
    site.put(table)
    site.wait(lambda: len(found := reports(site)) == 3 and all(row["proven"] for row in found.values()), 20, "proven")
    for factor in (2, 3, 4):
        assert infer(site, f"m{factor}").json()["outputs"][0]["data"] == [factor] * 4
    assert pid(site, "m2") == pid(site, "m3") == pid(site, "m4")
    assert sum(row["memory_bytes"] for row in reports(site).values()) < 100 << 20, "not the whole process for each"
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(site.short / "admin.sock")), base_url="http://admin"
    ) as admin:
        assert admin.post("/v2/repository/models/m3/unload").status_code == 200
    site.wait(lambda: reports(site)["m3"]["state"] == "cold", 10, "unloaded")
    assert infer(site, "m2").status_code == 200
    assert infer(site, "m3").json()["outputs"][0]["data"] == [3.0] * 4


def test_the_agents_end_leaves_no_process(site: ServingSite, tmp_path: Path) -> None:
    agent = site.start_agent()
    for factor in (2, 3):
        site.serve(f"m{factor}", generation(1, shared(tmp_path, factor)))
    first = pid(site, "m2")
    agent.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    agent.wait(10)
    assert time.monotonic() - begun < 5
    assert not Path(f"/proc/{first}").exists()
