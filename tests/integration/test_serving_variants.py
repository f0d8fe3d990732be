"""Variants behind a real router and agent: each runtime serves; on the fake NPU a wedged device is noticed from outside."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support import fake_onnxruntime
from support.ascend_tools import mindspore_lite_python, needs_mindspore_lite
from support.fake_acl import install
from support.runtime_variants import (
    SOC,
    batch,
    cann_variant,
    expected,
    golden,
    mindir_variant,
    model,
    om_variant,
    torch_variant,
)
from support.serving_site import DEVICE, ROOT, ServingSite, generation, write_bundle

from orchestrator.core.processes import pids_with_environment


class NpuSite:
    """A site with one slot of the fake NPU."""

    def __init__(self, tmp_path: Path, **config: Any) -> None:
        self.fake = install(tmp_path / "acl", **config)
        self.site = ServingSite(tmp_path / "site", env={**os.environ, "SERVING_TEST": str(tmp_path)})
        self.site.env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{self.fake}"
        bundle = write_bundle(tmp_path / "scale", model(), golden())
        variant = om_variant(tmp_path / "om", bundle=bundle[0])
        row = generation(1, bundle, device=SOC) | {"runtime": "om"}
        self.row = row | {"variant": variant.digest, "variant_path": str(variant.folder)}
        self.site.start_router()

    def start(self, **settings: object) -> None:
        self.site.start_agent(device=SOC, **settings)  # type: ignore[arg-type]

    def report(self) -> dict[str, Any]:
        agents = self.site.admin.status()["agents"]
        return (
            agents[0]["replicas"][0] if agents and agents[0]["replicas"] else {"state": "", "error": "", "restarts": 0}
        )

    def configure(self, **config: Any) -> None:
        install(self.fake, **config)


@pytest.fixture
def npu(tmp_path: Path) -> Iterator[NpuSite]:
    found = NpuSite(tmp_path)
    try:
        yield found
    finally:
        found.site.stop()
    assert list(pids_with_environment("SERVING_TEST", str(tmp_path))) == []


def ask(npu: NpuSite, rows: int = 3) -> None:
    inputs = batch(rows, seed=rows)
    with npu.site.client() as client:
        found = client.infer("scale", {tensor.name: tensor.array() for tensor in inputs})
    for name, wanted in expected(inputs).items():
        np.testing.assert_array_equal(found.outputs[name], wanted)


def test_an_om_serves_and_leaves_nothing_behind(npu: NpuSite) -> None:
    npu.start()
    npu.site.serve("scale", npu.row)
    for rows in range(1, 9):
        ask(npu, rows)
    npu.site.put({})
    npu.site.wait((npu.fake / "log.json").exists, 10, "the replica's end")
    log = json.loads((npu.fake / "log.json").read_text())
    assert log["violations"] == []
    assert log["live"] == {}
    assert log["calls"]["mdl.set_dynamic_batch_size"] >= 8 + 3  # every gear ran before it was ready


@pytest.mark.parametrize("wedge", ["event", "gil"])
def test_a_wedged_device_is_noticed_from_outside(npu: NpuSite, wedge: str) -> None:
    npu.configure(wedge=wedge, wedge_after=20)
    npu.start(stall_s=0.5)
    npu.site.serve("scale", npu.row)
    for _ in range(6):
        ask(npu)
    npu.configure()  # the next process finds the device well
    for _ in range(8):  # what is in flight when the device hangs is given to the next replica
        ask(npu)
    assert npu.report()["restarts"] == 1
    log = next((npu.site.folder / "agent.log").parent.glob("agent.log")).read_text()
    assert "a batch did not finish in time; the device does not answer" in log


def test_a_device_that_hangs_at_the_start_is_told(npu: NpuSite) -> None:
    npu.configure(wedge="gil")
    npu.start(load_s=0.5)
    npu.site.put({"scale": {"pool": "edge", "generations": [npu.row]}})
    npu.site.wait(lambda: npu.report()["restarts"] >= 1, 10, "the end of the first")
    assert "did not finish" in npu.report()["error"]
    npu.configure()
    npu.site.admin.wait_ready("scale", 1, 10)


def test_a_broken_device_says_why(npu: NpuSite) -> None:
    npu.configure(fail={"mdl.execute_async": [507015, 0]})
    npu.start()
    npu.site.put({"scale": {"pool": "edge", "generations": [npu.row]}})
    npu.site.wait(lambda: npu.report()["state"] == "failed", 10, "the report")
    error = npu.report()["error"]
    assert "507015" in error
    assert "EZ9999: Inner Error" in error  # ACL's own words reach whoever asks for the status
    npu.configure()
    npu.site.admin.wait_ready("scale", 1, 10)
    ask(npu)


def test_a_device_that_stays_broken_is_quarantined_until_another_is_wanted(npu: NpuSite) -> None:
    npu.configure(soc="Ascend910B3")
    npu.start(quarantine_s=600.0)
    npu.site.put({"scale": {"pool": "edge", "generations": [npu.row]}})
    npu.site.wait(lambda: "quarantined" in npu.report()["error"], 15, "the quarantine")
    report = npu.report()
    wanted = "quarantined for 600 s after 3 failures of the device in a row: this slot is Ascend310P3, the device calls"
    assert report["error"].startswith(wanted)
    npu.configure()
    assert npu.report()["restarts"] == report["restarts"] == 3
    moved = npu.site.folder / "moved" / Path(npu.row["path"]).name
    shutil.copytree(npu.row["path"], moved)
    npu.site.put({"scale": {"pool": "edge", "generations": [npu.row | {"path": str(moved)}]}})  # tried at once
    npu.site.wait(lambda: npu.report()["state"] != "failed", 5, "another try")
    npu.site.admin.wait_ready("scale", 1, 10)
    ask(npu)


@needs_mindspore_lite
def test_a_mindir_serves_in_its_own_interpreter_and_its_end_is_noticed(tmp_path: Path) -> None:
    python = mindspore_lite_python()
    assert python is not None
    site = ServingSite(tmp_path / "site", env={**os.environ, "SERVING_TEST": str(tmp_path)})
    try:
        bundle = write_bundle(tmp_path / "scale", model(), golden())
        variant = mindir_variant(tmp_path / "mindir", python, bundle=bundle[0])
        row = generation(1, bundle) | {"runtime": "mindir"}
        site.start_router()
        site.start_agent(tools={"mindspore_lite_python": str(python)})
        site.serve("scale", row | {"variant": variant.digest, "variant_path": str(variant.folder)})
        inputs = batch(3)
        arrays = {tensor.name: tensor.array() for tensor in inputs}
        with site.client() as client:
            for turn in range(6):
                found = client.infer("scale", arrays)
                np.testing.assert_array_equal(found.outputs["y"], expected(inputs)["y"])
                assert found.outputs["m"].dtype == np.int64  # the converter made it int32
                if turn == 2:
                    (replica,) = site.replica_pids("scale")
                    (child,) = psutil.Process(replica).children()
                    assert str(python.resolve()) == str(Path(child.exe()).resolve())
                    child.kill()
    finally:
        site.stop()
    assert list(pids_with_environment("SERVING_TEST", str(tmp_path))) == []


@pytest.mark.parametrize("runtime", ["torch", "onnx-cann"])
def test_a_variant_serves(tmp_path: Path, runtime: str) -> None:
    site = ServingSite(tmp_path / "site")
    bundle = write_bundle(tmp_path / "scale", model(), golden())
    make, device = (torch_variant, DEVICE) if runtime == "torch" else (cann_variant, SOC)
    variant = make(tmp_path / "variant", bundle=bundle[0])
    if runtime == "onnx-cann":
        fake = fake_onnxruntime.install(tmp_path / "cann")
        site.env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{fake}"
    try:
        site.start_router()
        site.start_agent(device=device)
        row = generation(1, bundle, device=device) | {"runtime": runtime}
        site.serve("scale", row | {"variant": variant.digest, "variant_path": str(variant.folder)})
        inputs = batch(3)
        with site.client() as client:
            found = client.infer("scale", {tensor.name: tensor.array() for tensor in inputs})
        for name, wanted in expected(inputs).items():
            np.testing.assert_array_equal(found.outputs[name], wanted)
    finally:
        site.stop()
