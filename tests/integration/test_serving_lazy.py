"""Many models on one slot: loaded when they are asked for, unloaded to make room, and no request lost on the way."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.serving_site import ServingSite, generation, scale_bundle

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}
MODELS = 30
FACTORS = (2.0, 3.0, 4.0)
BUDGET_BYTES = 225 << 20
"""Three replicas of 57 to 74 MiB each; a fourth does not fit."""


def infer(site: ServingSite, name: str, timeout_s: float = 30) -> httpx.Response:
    return httpx.post(f"{site.url}/v2/models/{name}/infer", json=BODY, timeout=timeout_s)


def factor(answer: httpx.Response) -> float:
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][0]["data"][0]


def rows(site: ServingSite) -> dict[str, dict[str, Any]]:
    return {row["endpoint"]: row for agent in site.admin.status()["agents"] for row in agent["replicas"]}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    folder = tmp_path_factory.mktemp("lazy")
    site = ServingSite(folder / "site")
    try:
        site.start_router()
        site.start_agent(models="lazy", memory_bytes=BUDGET_BYTES)
        bundles = [scale_bundle(folder / f"bundle{i}", value) for i, value in enumerate(FACTORS)]
        table = {f"m{i}": {"pool": "edge", "generations": [generation(1, bundles[i % 3])]} for i in range(MODELS)}
        site.put(table)
        site.table = table  # type: ignore[attr-defined]
        site.wait(lambda: len(found := rows(site)) == MODELS and all(r["proven"] for r in found.values()), 30, "proven")
        yield site
    finally:
        site.stop()


def test_thirty_models_share_the_room_of_three(site: ServingSite) -> None:
    found = rows(site)
    assert sum(row["loads"] for row in found.values()) == len(FACTORS)  # one proof for each build
    with httpx.Client(base_url=site.url) as client:
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/v2/models/m29").json()["inputs"][0]["shape"] == [-1, 4]
    for name in ("m10", "m11", "m12", "m10", "m13"):
        assert factor(infer(site, name)) == FACTORS[int(name[1:]) % 3]
    site.wait(lambda: rows(site)["m13"]["load_s"] > 0, 5, "the agent says that it is loaded")
    found = rows(site)
    loaded = {name for name, row in found.items() if row["pid"]}
    assert {"m10", "m13"} <= loaded  # the one that was used longest ago made room
    assert len(loaded) <= 3
    assert sum(row["memory_bytes"] for name, row in found.items() if name in loaded) <= BUDGET_BYTES
    gone = next(name for name in found if found[name]["unloads"])
    row = next(row for row in site.admin.status()["generations"] if row["endpoint"] == gone)
    assert (row["load"], row["ready"] + row["cold"]) == ("lazy", 1)


def test_requests_and_tables_meet_models_that_come_and_go(site: ServingSite) -> None:
    stop, failures, answers = threading.Event(), list[str](), list[str]()

    def ask(seed: int) -> None:
        dice = random.Random(seed)
        with httpx.Client(base_url=site.url, timeout=30) as client:
            while not stop.is_set():
                name = f"m{dice.choice((1, 2, 3, 4))}"
                answer = client.post(f"/v2/models/{name}/infer", json=BODY)
                wrong = answer.status_code != 200 or factor(answer) != FACTORS[int(name[1:]) % 3]
                (failures if wrong else answers).append(f"{name}: {answer.text}")

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    before = sum(row["unloads"] for row in rows(site).values())
    table: dict[str, Any] = dict(site.table)  # type: ignore[attr-defined]
    for _ in range(4):
        time.sleep(0.6)
        table.pop(f"m{29 - len(site.table) + len(table)}", None)  # type: ignore[attr-defined]
        site.put(table)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(answers) >= 4
    assert sum(row["unloads"] for row in rows(site).values()) > before


def test_a_model_that_cannot_be_loaded_is_refused_with_the_reason_and_no_storm(
    site: ServingSite, tmp_path: Path
) -> None:
    table = site.admin.table().to_json()["endpoints"]
    bad = scale_bundle(tmp_path / "bad", 5.0, wrong_golden=True)
    site.put({**table, "bad": {"pool": "edge", "generations": [generation(1, bad)]}})  # type: ignore[dict-item]
    site.wait(lambda: "bad" in rows(site) and rows(site)["bad"]["state"] == "failed", 20, "bad fails")
    begun = time.monotonic()
    refused = [infer(site, "bad") for _ in range(40)]
    assert {answer.status_code for answer in refused} == {503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert any("self-check of sample 0" in answer.text for answer in refused), {answer.text for answer in refused}
    assert rows(site)["bad"]["restarts"] <= 2 + (time.monotonic() - begun) / 0.5
    assert factor(infer(site, "m5")) == FACTORS[2]  # it holds up nobody
    site.put(table)  # type: ignore[arg-type]


def test_an_operator_may_unload_and_a_router_that_restarts_still_knows_its_models(site: ServingSite) -> None:
    assert factor(infer(site, "m7")) == FACTORS[1]
    assert site.router is not None
    site.router.send_signal(signal.SIGKILL)
    site.router.wait()
    site.start_router()
    with httpx.Client(base_url=site.url) as client:
        assert client.get("/v2/models/m8").json()["inputs"][0]["name"] == "x"
    site.wait(lambda: len(rows(site)) > 20, 5, "the agent is back")
    assert factor(infer(site, "m8")) == FACTORS[2]
    assert factor(infer(site, "m7")) == FACTORS[1]


def test_an_agent_that_restarts_loads_nothing_that_was_proven(site: ServingSite) -> None:
    agent = site.agents.pop()
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()
    site.start_agent(models="lazy", memory_bytes=BUDGET_BYTES)
    site.wait(lambda: len(found := rows(site)) > 20 and all(row["proven"] for row in found.values()), 10, "back")
    assert all(row["loads"] == 0 for row in rows(site).values())
    assert factor(infer(site, "m3")) == FACTORS[0]
