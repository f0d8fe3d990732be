"""Pools of the environment: what fits together, and what the site makes of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator.cluster.pool import LocalPool, ScaleRule, local_pool
from orchestrator.cluster.serve_config import serve_document
from orchestrator.cluster.site import LocalSite
from orchestrator.core.errors import EnvironmentFileError
from orchestrator.environment import Environment, load_environment
from orchestrator.environment.pool import Pool


def pool(text: str, tmp_path: Path) -> Pool:
    (tmp_path / "e.yaml").write_text(
        f"environment: 1\nsites: {{local: {{kind: local}}}}\npools: {{edge: {{site: local, {text}}}}}\n"
    )
    environment = load_environment(tmp_path / "e.yaml")
    assert Environment.model_validate(environment.model_dump(mode="json")) == environment
    return environment.pools["edge"]


def test_every_field_reaches_the_site_and_comes_back_from_json(tmp_path: Path) -> None:
    text = "soc: Ascend310P3, slots: 4, fraction: 0.5, models: lazy, memory: 2GiB"
    found = local_pool(
        pool(f"{text}, autoscale: {{min_slots: 2, target_queue: 8, up_after: 1s, down_after: 1m}}", tmp_path)
    )
    rule = ScaleRule(2, 4, 8.0, 1.0, 60.0)
    assert found == LocalPool(4, False, "Ascend310P3", 0.5, {}, "lazy", 2 << 30, rule)
    assert LocalPool.from_json(json.loads(json.dumps(asdict(found)))) == found
    assert (found.least_slots, found.socs) == (2, ("Ascend310P3",) * 4)
    (made,) = serve_document(LocalSite("local", tmp_path, {"edge": found}))["applications"]
    assert made["external_scaler_enabled"] is True
    args = made["args"]
    assert (args["resource"], args["share"], args["slots"], args["start"]) == ("NPU", 0.5, 4, 2)
    assert (args["models"], args["memory_bytes"], args["device"]) == ("lazy", 2 << 30, "Ascend310P3")


def test_slots_of_several_socs(tmp_path: Path) -> None:
    parts = "[{soc: Ascend310P3, slots: 2}, {soc: Ascend910B4}]"
    found = local_pool(pool(f"devices: {parts}, rehearsal: true", tmp_path))
    assert found.socs == ("Ascend310P3", "Ascend310P3", "Ascend910B4")
    (made,) = serve_document(LocalSite("local", tmp_path, {"edge": found}))["applications"]
    assert made["args"]["socs"] == {"0": "Ascend310P3", "1": "Ascend310P3", "2": "Ascend910B4"}
    assert (made["args"]["slots"], made["args"]["share"], made["args"]["device"]) == (3, 1.0, "cpu (rehearsal)")


BROKEN = {
    "neither": ("slots: 1", "needs either `soc` or `devices`"),
    "both": ("soc: Ascend310P3, devices: [{soc: Ascend310P3}]", "needs either `soc` or `devices`"),
    "twice": ("devices: [{soc: Ascend310P3}, {soc: Ascend310P3}]", "a SoC stands twice"),
    "slots_beside": ("slots: 5, devices: [{soc: Ascend310P3, slots: 2}]", "`slots` stands in each of `devices`"),
    "scaled_mixture": ("devices: [{soc: Ascend310P3}], autoscale: {}", "`autoscale` needs one SoC"),
    "too_many": ("soc: Ascend310P3, slots: 2, autoscale: {max_slots: 3}", "autoscale from 1 to 3 slots does not fit"),
    "backwards": ("soc: Ascend310P3, slots: 4, autoscale: {min_slots: 3, max_slots: 2}", "from 3 to 2"),
    "memory": ("soc: Ascend310P3, memory: 8 gigs", "not a size: '8 gigs' (write 512MiB or 2GiB)"),
    "fraction": ("soc: Ascend310P3, fraction: 0", "must be at least 0.01, not 0"),
    "models": ("soc: Ascend310P3, models: sometimes", '"sometimes" is not one of always, lazy'),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_pool_says_what_is_wrong(case: str, tmp_path: Path) -> None:
    text, expected = BROKEN[case]
    with pytest.raises(EnvironmentFileError) as caught:
        pool(text, tmp_path)
    told = [f"{p['path']}: {p['message']}" for p in caught.value.details["problems"]]
    assert len(told) == 1, told
    assert told[0].startswith("pools.edge")
    assert expected in told[0]
