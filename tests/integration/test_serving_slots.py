"""Slots behind a real router: an endpoint that takes some of them, and a pool whose slots are of two SoCs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_acl import install
from support.runtime_variants import SOC, batch, expected, golden, model, om_variant
from support.serving_site import Load, ServingSite, generation, scale_bundle, write_bundle

from orchestrator.bundle.variant import write_variant
from orchestrator.serving.placing import chosen

OTHER = "Ascend910B4"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    found = ServingSite(tmp_path_factory.mktemp("slots"))
    try:
        found.start_router()
        yield found
    finally:
        found.stop()


def put(site: ServingSite, name: str, **endpoint: Any) -> None:
    table = site.admin.table().to_json()
    endpoints: dict[str, Any] = {**table["endpoints"], name: endpoint}  # type: ignore[dict-item]
    site.version = int(table["version"])  # type: ignore[arg-type]
    site.put(endpoints)


def holders(site: ServingSite, endpoint: str) -> set[int]:
    """Slots whose agents run the endpoint, or something of it."""
    agents = site.admin.status()["agents"]
    return {row["slot"] for row in agents if any(r["endpoint"] == endpoint for r in row["replicas"])}


def ready(site: ServingSite, endpoint: str) -> int:
    return next(row["ready"] for row in site.admin.status()["generations"] if row["endpoint"] == endpoint)


def test_an_endpoint_takes_its_slots_and_gives_them_back_without_losing_a_request(site: ServingSite) -> None:
    bundle = scale_bundle(site.folder / "two", 2.0)
    for number in range(3):
        site.start_agent(f"agent-{number}", slots=3)
    put(site, "scale", pool="edge", generations=[generation(1, bundle)])
    site.wait(lambda: ready(site, "scale") == 3, 20, "all three slots")
    load = Load(site.url, "scale", clients=3)
    try:
        for slots in (1, 2, 1):
            put(site, "scale", pool="edge", generations=[generation(1, bundle)], slots=slots)
            site.wait(lambda n=slots: len(holders(site, "scale")) == ready(site, "scale") == n, 20, f"{slots} slots")
            seen = len(load.answers)
            site.wait(lambda n=seen: len(load.answers) > n + 20 or load.failures, 20, "traffic")
    finally:
        load.stop()
    assert load.failures == []
    assert set(load.answers) == {(1, 2.0)}
    host = site.admin.status()["agents"][0]["host"]
    names = [f"{host}/{slot}" for slot in range(3)]
    assert {f"{host}/{slot}" for slot in holders(site, "scale")} == set(chosen("scale", 1, names))


def test_an_endpoint_moves_when_its_slot_is_gone_and_a_restarted_router_shares_out_the_same(site: ServingSite) -> None:
    (before,) = holders(site, "scale")
    pid = next(row["pid"] for row in site.admin.status()["agents"] if row["slot"] == before)
    next(agent for agent in site.agents if agent.pid == pid).terminate()
    site.wait(lambda: holders(site, "scale") - {before} and ready(site, "scale") == 1, 20, "another slot takes over")
    (after,) = holders(site, "scale")
    assert site.router is not None
    site.router.kill()
    site.router.wait(5)
    site.start_router()
    site.wait(lambda: len(site.admin.status()["agents"]) == 2 and holders(site, "scale"), 20, "agents dial again")
    assert holders(site, "scale") == {after}


def npu(site: ServingSite, soc: str, bundle: tuple[str, Path]) -> dict[str, Any]:
    """Start an agent on a fake NPU, which replicas find only through CANN's set_env.sh; return its build's row."""
    fake = install(site.folder / f"cann-{soc}", soc=soc, device_s=0.01)
    (fake / "set_env.sh").write_text(f"export PYTHONPATH={fake}${{PYTHONPATH:+:$PYTHONPATH}} FAKE_CANN={soc}\n")
    tools = {"cann_env": str(fake / "set_env.sh")}
    site.start_agent(f"agent-{soc}", 2, "mixed", soc, tools=tools, socs={"0": soc, "1": soc})
    variant = write_variant(replace(om_variant(site.folder / f"om-{soc}", bundle=bundle[0], soc=soc), soc=soc))
    row = {"soc": soc, "runtime": "om", "device": soc}
    return row | {"variant": variant.digest, "variant_path": str(variant.folder)}


def ask(site: ServingSite, number: int) -> str:
    inputs = batch(1 + number % 8, seed=number)
    with site.client() as client:
        answer = client.infer("both", {tensor.name: tensor.array() for tensor in inputs})
    for name, wanted in expected(inputs).items():
        np.testing.assert_array_equal(answer.outputs[name], wanted)
    return answer.device


def test_slots_of_two_socs_load_each_their_own_and_every_answer_names_its_device(site: ServingSite) -> None:
    bundle = write_bundle(site.folder / "mixed", model(), golden())
    builds = [npu(site, soc, bundle) for soc in (SOC, OTHER)]
    first = generation(1, bundle, device=SOC) | {key: builds[0][key] for key in ("runtime", "variant", "variant_path")}
    put(site, "both", pool="mixed", generations=[first | {"builds": builds}])
    site.wait(lambda: ready(site, "both") == 2, 30, "a replica on each SoC")
    reports = [r for a in site.admin.status()["agents"] for r in a["replicas"] if r["endpoint"] == "both"]
    assert {report["variant"] for report in reports} == {build["variant"] for build in builds}
    with ThreadPoolExecutor(6) as pool:
        devices = set(pool.map(lambda number: ask(site, number), range(48)))
    assert devices == {SOC, OTHER}
    environ = [Path(f"/proc/{pid}/environ").read_bytes() for pid in site.replica_pids("both")]
    assert all(b"FAKE_CANN=Ascend" in text for text in environ)
    assert "FAKE_CANN" not in os.environ
