from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from orchestrator.core.errors import GateError, UserCodeError
from orchestrator.graph.read import inspect_onnx, write_onnx_json
from orchestrator.graph.run_onnx import OnnxModel
from orchestrator.graph.verdict import PRECISION_SQNR_DB
from orchestrator.steps.api import SiteInfo, StepContext
from orchestrator.steps.forecast import run
from tests.support.zoo import ZOO, ZooGraph


class Events:
    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.messages: list[str] = []
        self.shares: list[float] = []

    def progress(self, done: float, total: float, text: str = "") -> None:
        self.shares.append(done / total)

    def metric(self, name: str, value: float, step: int = 0) -> None:
        self.metrics[name] = value

    def message(self, text: str) -> None:
        self.messages.append(text)


def context(
    tmp_path: Path, graph: ZooGraph, target: dict[str, Any], parity: dict[str, Any] | None = None
) -> StepContext:
    folder, recipe = tmp_path / "onnx", tmp_path / "recipe"
    for path in (folder, recipe, tmp_path / "work", tmp_path / "out"):
        path.mkdir()
    onnx.save(graph.model, folder / "model.onnx")
    write_onnx_json(folder, inspect_onnx(folder / "model.onnx"), "source")
    np.savez(recipe / "real.npz", **graph.samples)
    (recipe / "foreseen.py").write_text(
        "import pathlib\nimport numpy as np\n"
        "X = dict(np.load(pathlib.Path(__file__).parent / 'real.npz'))\n"
        "def samples(n):\n"
        "    for row in range(min(n, len(next(iter(X.values()))))):\n"
        "        yield {k: v[row:row + 1] for k, v in X.items()}\n"
        "def evaluate(predict):\n    y = next(iter(predict(X).values()))\n    return {'mean': float(np.clip(y, -1e6, 1e6).mean())}\n"
    )
    spec = {
        "model": {"inputs": {}, "outputs": {}},
        "target": {"name": "npu", "format": "om", "soc": "Ascend310P3", "precision": "fp16", "keep": "auto", **target},
        "samples": "foreseen:samples", "samples_count": 8, "evaluate": "foreseen:evaluate", "parity": parity or {},
    }  # fmt: skip
    return StepContext(
        "forecast-npu", "forecast", spec, recipe, {"onnx": folder}, tmp_path / "work", tmp_path / "out",
        SiteInfo("local", True, tmp_path), 1, Events(),
    )  # fmt: skip


def test_the_step_leaves_graph_twin_and_report(tmp_path: Path) -> None:
    graph = ZOO["rmsnorm_massive"]()
    ctx = context(tmp_path, graph, {})
    done = run(ctx)
    assert set(done.outputs) == {"graph", "twin", "report"}
    metrics = done.metrics
    assert metrics["sqnr_db"] > 55
    assert metrics["must_keep"] >= 18
    assert {"cosine", "cost_flops_share", "casts_added", "task.mean", "task_drop.mean"} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    report = done.outputs["report"].folder
    names = {path.name for path in report.iterdir()}
    assert names >= {
        "report.json", "forecast.json", "forecast.html", "keep_dtype.cfg", "modify_mixlist.json", "keep_reasons.json",
        "prepared.json", "coverage.json",
    }  # fmt: skip
    twin = OnnxModel(done.outputs["twin"].folder / "model.onnx")(graph.samples)["logits"]
    plain = OnnxModel(done.outputs["graph"].folder / "model.onnx")(graph.samples)["logits"]
    noise = 10 * np.log10(np.sum(plain**2) / np.sum((plain - twin) ** 2))
    assert noise > 55  # the twin that goes on is the one with the keep list
    assert "<title>recipe, target npu: model.onnx on Ascend310P3" in (report / "forecast.html").read_text()
    assert (report / "keep_dtype.cfg").read_text().split() == done.facts["keep"]


def test_a_no_is_a_gate_that_names_the_nodes(tmp_path: Path) -> None:
    ctx = context(tmp_path, ZOO["overflow_trap"](), {"keep": "none"})
    with pytest.raises(GateError) as refused:
        run(ctx)
    details: dict[str, Any] = refused.value.details
    assert details["nodes"]
    assert details["verdict"] == "no"
    report = json.loads((Path(details["report"]) / "forecast.json").read_text())
    assert report["verdict"] == "no"


def test_limits_of_the_recipe_are_what_is_asked(tmp_path: Path) -> None:
    ctx = context(tmp_path, ZOO["mlp"](), {"keep": "none"}, {"min_sqnr_db": 90.0, "metric_drop": {"mean": 0.5}})
    with pytest.raises(GateError, match="asked 90 dB") as refused:
        run(ctx)
    assert refused.value.details["verdict"] == "no"


def test_a_default_that_is_nearly_met_only_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRECISION_SQNR_DB, "fp16", 90.0)
    unasked = {"min_sqnr_db": None, "min_cosine": None, "metric_drop": {}}
    done = run(context(tmp_path, ZOO["mlp"](), {"keep": "none"}, unasked))
    assert done.facts["verdict"] == "warn"
    assert any("asked 90 dB" in reason for reason in done.facts["reasons"])


def test_a_sample_with_nan_is_named(tmp_path: Path) -> None:
    graph = ZOO["mlp"]()
    ((name, values),) = graph.samples.items()
    values = values.copy()
    values[2, 0] = np.nan
    ctx = context(tmp_path, dataclasses.replace(graph, samples={name: values}), {})
    with pytest.raises(UserCodeError, match=f"foreseen:samples: sample 2: input '{name}' has NaN"):
        run(ctx)


def test_a_batch_that_the_target_fixes_is_filled(tmp_path: Path) -> None:
    graph = ZOO["mlp"]()
    size = len(next(iter(graph.samples.values()))) - 1  # the samples do not fill whole batches
    done = run(context(tmp_path, graph, {"shapes": {"N": [size]}}))
    shape = inspect_onnx(done.outputs["graph"].folder / "model.onnx").inputs[0].shape
    assert shape[0] == size
    assert done.facts["samples"] == 2 * size
    assert abs(done.metrics["task_drop.mean"]) < 1e-3
