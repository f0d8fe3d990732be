"""Preflight of the targets: what does not convert is refused before training, by name, with the way out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import GateError
from orchestrator.steps import preflight
from orchestrator.steps.api import SiteInfo, StepContext, StepResult

NETWORK = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.GroupNorm(2, 8)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x):
        x = self.conv(x)
        x = self.norm(x)
        return self.head(x.mean((2, 3)))
"""
MODEL = {
    "factory": "model:Net",
    "inputs": {"x": {"dtype": "float32", "shape": ["batch", 3, 16, 16]}},
    "outputs": {"y": {"dtype": "float32", "shape": ["batch", 4]}},
    "opset": 21,
}
NPU = {"name": "npu", "format": "om", "soc": "Ascend310P3", "precision": "fp16", "shapes": {}, "rewrites": {}}
OFF = {"rewrites": {"decompose_group_normalization": False}}


class Events:
    def __init__(self) -> None:
        self.said: list[str] = []

    def progress(self, done: float, total: float, text: str = "") -> None: ...

    def metric(self, name: str, value: float, step: int = 0) -> None: ...

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(autouse=True)
def _no_cann_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ASCEND_OPP_PATH", "ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("orchestrator.ascend.installed._DEFAULT_HOMES", ())


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder, self.events = folder, Events()
        (folder / "recipe").mkdir()
        (folder / "recipe" / "model.py").write_text(NETWORK)

    def run(self, *targets: Mapping[str, Any]) -> StepResult:
        work, out = self.folder / "work", self.folder / "out"
        work.mkdir(exist_ok=True)
        out.mkdir(exist_ok=True)
        spec = {"model": MODEL, "targets": list(targets)}
        site = SiteInfo("local", True, self.folder)
        return preflight.run(
            StepContext("preflight", "preflight", spec, self.folder / "recipe", {}, work, out, site, 1, self.events)
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_group_normalization_at_opset_21_is_refused_by_name_and_passes_with_its_rewrite(bench: Bench) -> None:
    start = time.process_time()  # our own work: the machine may be busy with other tests
    with pytest.raises(GateError, match="does not convert") as caught:
        bench.run({**NPU, **OFF})
    assert time.process_time() - start < 20
    error = caught.value
    assert "target npu: node node_group_norm (GroupNormalization at model.py:13)" in error.message
    assert "ATC has no parser for GroupNormalization at any opset" in error.message
    assert "(rewrite: decompose_group_normalization)" in error.message
    assert error.place == "model.py:13"
    assert "take `decompose_group_normalization: false` out" in error.hint
    refused = error.details["targets"]["npu"]["refused"]  # pyright: ignore
    assert [node["node"] for node in refused] == ["node_group_norm"]

    done = bench.run(NPU)
    report = json.loads((done.outputs["report"].folder / "report.json").read_text())
    target = report["targets"]["npu"]
    assert target["coverage"]["verdict"] == "ok"
    assert target["coverage"]["opset"] == 18
    assert "decompose_group_normalization" in [item["rewrite"] for item in target["prepared"]["applied"]]
    assert "rewrites: decompose_group_normalization" in done.facts["targets"]["npu"]
    assert bench.events.said == []


def test_every_target_is_judged_and_all_refusals_are_told_at_once(bench: Bench) -> None:
    lite = {**NPU, "name": "lite", "format": "mindir", **OFF}
    plain = {"name": "plain", "format": "onnx", "soc": None}
    with pytest.raises(GateError) as caught:
        bench.run({**NPU, **OFF}, lite, plain)
    assert "target npu: node node_group_norm" in caught.value.message
    assert "target lite: node node_group_norm" in caught.value.message
    assert set(caught.value.details["targets"]) == {"npu", "lite"}  # pyright: ignore
    written = json.loads((bench.folder / "out/report/report.json").read_text())
    rows = {row["check"]: row["passed"] for row in written["checks"]}
    assert rows == {"exports": True, "reads back": True, "runs": True, "npu": False, "lite": False, "plain": True}


def test_slow_and_unknown_are_said_and_let_through(bench: Bench) -> None:
    done = bench.run({**NPU, "soc": "Ascend950PR_9599", "shapes": {"widht": [2]}})
    assert done.outputs["report"]
    assert any(text.startswith("target npu: unknown: node_conv2d (Conv):") for text in bench.events.said)
    assert "target npu: no input has a dimension 'widht': its sizes change nothing" in bench.events.said


def test_a_node_that_no_rewrite_removes(bench: Bench) -> None:
    odd = NETWORK.replace("x = self.norm(x)", "x = torch.isnan(x).float() + x")
    (bench.folder / "recipe" / "model.py").write_text(odd)
    with pytest.raises(GateError, match=r"\(IsNaN at model.py:13\): IsNan has no kernel on ascend310p") as caught:
        bench.run(NPU)
    assert "choose another SoC" in caught.value.hint
