"""The steps on a model, in this process: preflight, export, evaluate, bundle, parity, source; each with its refusals."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.bundle.golden import read_golden
from orchestrator.bundle.oci import unpack
from orchestrator.bundle.store import Store
from orchestrator.core.errors import GateError, OrchestratorError, TrackingError, UserCodeError
from orchestrator.graph.run_onnx import OnnxModel
from orchestrator.plan.gates import judge_result
from orchestrator.steps import bundle, evaluate, export, parity, preflight, source
from orchestrator.steps.api import CHECKPOINT, SiteInfo, StepContext, StepResult

MODEL = {
    "factory": "model:build",
    "inputs": {"x": {"dtype": "float32", "shape": ["batch", 4]}},
    "outputs": {"y": {"dtype": "float32", "shape": ["batch", 2]}},
}
TARGETS = [{"name": "npu", "format": "om", "soc": "Ascend310P3", "precision": "fp16", "shapes": {}}]
NETWORK = """
import torch
def build():
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
"""
USER = """
import numpy as np
def samples(n):
    random = np.random.default_rng(1)
    for _ in range(n):
        yield {"x": random.normal(size=(1, 4)).astype(np.float32)}
def evaluate(predict):
    y = predict({"x": np.ones((5, 4), np.float32)})["y"]
    return {"accuracy": float(y.shape[0] == 5), "mean": np.float32(y.mean())}
def broken(predict):
    return {"accuracy": float("nan")}
def wrong_shape(n):
    yield {"x": np.ones((1, 3), np.float32)}
def nothing(n):
    return iter(())
"""


class Quiet:
    def progress(self, done: float, total: float, text: str = "") -> None: ...

    def metric(self, name: str, value: float, step: int = 0) -> None: ...

    def message(self, text: str) -> None: ...


class Bench:
    """A recipe with a trained checkpoint, and steps run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0
        self.recipe = folder / "recipe"
        self.recipe.mkdir()
        (self.recipe / "model.py").write_text(NETWORK)
        (self.recipe / "user_functions.py").write_text(USER)
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        self.checkpoint = folder / "checkpoint"
        self.checkpoint.mkdir()
        save_file(network.state_dict(), self.checkpoint / "model.safetensors")

    def run(self, step: Any, spec: Mapping[str, Any], **inputs: Path) -> StepResult:
        self._count += 1
        work, out = self.folder / f"work-{self._count}", self.folder / f"out-{self._count}"
        work.mkdir()
        out.mkdir()
        kind = step.__name__.rpartition(".")[2]
        site = SiteInfo("local", True, self.folder)
        return step.run(StepContext(kind, kind, spec, self.recipe, inputs, work, out, site, 1, Quiet()))

    def exported(self) -> Path:
        done = self.run(export, {"model": MODEL, "targets": TARGETS}, checkpoint=self.checkpoint)
        return done.outputs["onnx"].folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def onnx(bench: Bench) -> Path:
    return bench.exported()


def report(done: StepResult) -> dict[str, Any]:
    return json.loads((done.outputs["report"].folder / "report.json").read_text())


def test_preflight_names_each_check_with_its_evidence(bench: Bench) -> None:
    done = bench.run(preflight, {"model": MODEL, "targets": TARGETS})
    checks = {row["check"]: row["evidence"] for row in report(done)["checks"]}
    assert list(checks) == ["exports", "reads back", "runs", "npu"]
    assert f"opset {done.facts['opset']} read back" in checks["exports"]
    assert checks["npu"].startswith("Ascend310P3 by ATC, fp16: opset 18, 3 ok; rewrites: none needed; tables: shipped")
    assert "Gemm 2" in checks["reads back"]
    assert checks["runs"] == "outputs y [2, 2]"
    assert done.facts["parameters"] == 4 * 8 + 8 + 8 * 2 + 2


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"outputs": {"y": {"dtype": "float32", "shape": ["batch", 3]}}}, OrchestratorError, "y"),
        ({"inputs": {"x": {"dtype": "float32", "shape": ["batch", 5]}}}, OrchestratorError, "mat1 and mat2|shape"),
        ({"factory": "model:absent"}, UserCodeError, "absent"),
    ],
)
def test_preflight_refuses_what_does_not_fit(
    bench: Bench, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        bench.run(preflight, {"model": {**MODEL, **change}, "targets": TARGETS})


def test_preflight_looks_at_one_sample_before_anything_is_trained(bench: Bench) -> None:
    spec = {"model": MODEL, "targets": TARGETS, "samples_count": 1}
    done = bench.run(preflight, {**spec, "samples": "user_functions:samples"})
    checks = {row["check"]: row["evidence"] for row in report(done)["checks"]}
    assert checks["samples"] == "x float32[1, 4]"
    with pytest.raises(UserCodeError, match="sample 0 of user_functions:wrong_shape"):
        bench.run(preflight, {**spec, "samples": "user_functions:wrong_shape"})


def test_export_reads_back_an_opset_that_the_target_parses(bench: Bench, onnx: Path) -> None:
    facts = json.loads((onnx / "onnx.json").read_text())
    assert facts["opset"] <= 18
    assert [spec["name"] for spec in facts["inputs"]] == ["x"]
    assert OnnxModel(onnx / "model.onnx")({"x": np.zeros((3, 4), np.float32)})["y"].shape == (3, 2)


def test_evaluate_gives_the_same_on_torch_and_on_onnx(bench: Bench, onnx: Path) -> None:
    spec = {"model": MODEL, "entrypoint": "user_functions:evaluate", "gates": []}
    on_torch = bench.run(evaluate, spec, checkpoint=bench.checkpoint)
    on_onnx = bench.run(evaluate, {**spec, "model": None}, onnx=onnx)
    assert on_torch.metrics["accuracy"] == on_onnx.metrics["accuracy"] == 1.0
    assert on_torch.metrics["mean"] == pytest.approx(on_onnx.metrics["mean"], rel=1e-5)
    assert (on_torch.facts["model"], on_onnx.facts["model"]) == ("torch", "onnx")


def test_a_metric_that_is_not_finite_stops_here(bench: Bench) -> None:
    with pytest.raises(GateError, match="metric accuracy is nan"):
        bench.run(
            evaluate, {"model": MODEL, "entrypoint": "user_functions:broken", "gates": []}, checkpoint=bench.checkpoint
        )


def test_weights_of_another_network_are_named(bench: Bench, tmp_path: Path) -> None:
    save_file({"0.weight": torch.zeros(8, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(UserCodeError, match=r"missing: 0\.bias, 2\.bias, 2\.weight"):
        bench.run(export, {"model": MODEL, "targets": TARGETS}, checkpoint=tmp_path)


PARITY = {
    "model": MODEL,
    "targets": [],
    "parity": {},
    "tools": {},
    "evaluate": None,
    "samples": "user_functions:samples",
    "samples_count": 8,
}


def test_parity_holds_for_a_true_export(bench: Bench, onnx: Path) -> None:
    done = bench.run(parity, PARITY, checkpoint=bench.checkpoint, onnx=onnx)
    (link,) = report(done)["links"]
    assert (done.facts["samples"], link["candidate"], link["reference"]) == (8, "onnx", "torch")
    assert link["metrics"]["y"]["worst_sqnr_db"] >= 80
    assert done.metrics["max_abs.onnx.y"] < 1e-5
    assert judge_result("parity", PARITY, {"metrics": done.metrics, "facts": done.facts}) is None


def test_parity_says_by_how_much_a_false_export_is_off(bench: Bench, onnx: Path, tmp_path: Path) -> None:
    tensors = load_file(bench.checkpoint / "model.safetensors")
    tensors["2.bias"] = tensors["2.bias"] + 0.05
    save_file(tensors, tmp_path / "model.safetensors")
    done = bench.run(parity, PARITY, checkpoint=tmp_path, onnx=onnx)
    error = judge_result("parity", PARITY, {"metrics": done.metrics, "facts": done.facts})
    assert error is not None
    assert re.search(
        r"torch → onnx: y: SQNR -?[\d.]+ dB at sample \d+, asked 80 dB \(would pass: min_sqnr_db", error.message
    )


@pytest.mark.parametrize(
    ("function", "error", "says"),
    [("wrong_shape", UserCodeError, "sample 0 of .*'x'"), ("nothing", UserCodeError, "gave no sample")],
)
def test_samples_that_do_not_fit_are_refused(
    bench: Bench, onnx: Path, function: str, error: type[Exception], says: str
) -> None:
    spec = {"model": MODEL, "targets": [], "samples": f"user_functions:{function}", "samples_count": 8}
    with pytest.raises(error, match=says):
        bench.run(parity, spec, checkpoint=bench.checkpoint, onnx=onnx)


def test_stages_are_tried_before_anything_is_trained(bench: Bench) -> None:
    code = "import numpy as np\ndef pre(given):\n    return {'x': np.repeat(given['n'], 4, 1).astype(np.float32)}\n"
    (bench.recipe / "stage.py").write_text(code + "def asked(n):\n    yield {'n': np.ones((1, 1), np.int64)}\n")
    keys = ("postprocess", "outputs", "max_batch", "priority")
    serve = dict.fromkeys(keys) | {"preprocess": "stage:pre", "samples": "stage:asked", "further": {}, "share": 1.0}
    serve |= {"isolation": "process", "max_queue_delay_ms": 0.0, "pinned": False}
    serve |= {"inputs": [{"name": "n", "dtype": "int64", "shape": ["batch", 1]}]}
    spec = {"model": MODEL, "targets": [], "samples_count": 1, "serve": serve}
    checks = {row["check"]: row["evidence"] for row in report(bench.run(preflight, spec))["checks"]}
    assert checks["stages"] == "1 files; x float32[1, 4]"
    (bench.recipe / "stage.py").write_text(
        code.replace("'x'", "'z'") + "def asked(n):\n    yield {'n': np.ones((1, 1), int)}\n"
    )
    sys.modules.pop("stage", None)
    with pytest.raises(UserCodeError, match="preprocess stage:pre gave \\['z'\\], expected \\['x'\\]"):
        bench.run(preflight, spec)


def test_a_bundle_holds_what_torch_answered_to_real_samples(bench: Bench, onnx: Path, tmp_path: Path) -> None:
    spec = {"model": MODEL, "targets": TARGETS, "name": "tiny", "description": ""}
    spec |= {"samples": "user_functions:samples", "samples_count": 4}
    inputs = {"onnx": onnx, "checkpoint": bench.checkpoint}
    done = bench.run(bundle, spec, **inputs)
    again = bench.run(bundle, spec, **inputs)
    assert done.facts["bundle"] == again.facts["bundle"], "the same content has the same name"
    folder = unpack(done.outputs["bundle"].folder, tmp_path, expected=str(done.facts["bundle"]))
    golden = read_golden(folder / "golden.safetensors")
    assert golden.count == 4
    served = OnnxModel(folder / "model.onnx")(golden.inputs)
    np.testing.assert_allclose(served["y"], golden.outputs["y"], atol=1e-5)
    assert (folder / "model.safetensors").exists()
    assert done.facts["golden_real"] is True


def test_a_graph_without_samples_gets_synthetic_ones_and_says_so(bench: Bench, onnx: Path) -> None:
    spec = {"model": None, "targets": [], "name": "tiny", "description": "", "samples": None, "samples_count": 4}
    facts = bench.run(bundle, spec, onnx=onnx).facts
    assert (facts["golden_real"], facts["reference"], facts["golden_samples"]) == (False, "onnx", 4)


def test_sources_of_every_kind(bench: Bench, onnx: Path) -> None:
    weights = load_file(bench.checkpoint / "model.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, bench.recipe / "old.pt")
    shutil.copyfile(bench.checkpoint / "model.safetensors", bench.recipe / "new.safetensors")
    shutil.copyfile(onnx / "model.onnx", bench.recipe / "graph.onnx")
    for kind, name in (("checkpoint", "old.pt"), ("torch", "old.pt"), ("safetensors", "new.safetensors")):
        done = bench.run(source, {"source": {kind: name}, "model": MODEL})
        found = load_file(done.outputs["checkpoint"].folder / "model.safetensors")
        assert all(torch.equal(found[key], weights[key]) for key in weights)
    done = bench.run(source, {"source": {"onnx": "graph.onnx"}})
    assert OnnxModel(done.outputs["onnx"].folder / "model.onnx").outputs[0].name == "y"


def test_a_source_with_code_in_it_is_never_loaded(bench: Bench) -> None:
    torch.save({"model": Quiet()}, bench.recipe / "object.pt")
    with pytest.raises(UserCodeError, match="Python objects, which are never loaded"):
        bench.run(source, {"source": {"checkpoint": "object.pt"}, "model": MODEL})
    with pytest.raises(UserCodeError, match="there is no"):
        bench.run(source, {"source": {"onnx": "absent.onnx"}})


def test_a_checkpoint_of_ours_is_found_by_its_digest(bench: Bench, tmp_path: Path) -> None:
    copy = shutil.copytree(bench.checkpoint, tmp_path / "copy")
    digest = Store(bench.folder / "store").commit(copy, CHECKPOINT).digest
    done = bench.run(source, {"source": {"checkpoint": digest}, "model": MODEL})
    assert (done.outputs["checkpoint"].folder / "model.safetensors").exists()


def test_a_registered_model_is_fetched_by_its_alias(bench: Bench, tmp_path: Path, monkeypatch: Any) -> None:
    import mlflow
    from mlflow import MlflowClient

    uri = f"sqlite:///{bench.folder / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("tiny", artifact_location=str(tmp_path)))
    client.log_artifact(run.info.run_id, str(bench.checkpoint / "model.safetensors"), "checkpoint")
    client.create_registered_model("tiny")
    version = client.create_model_version("tiny", f"{run.info.artifact_uri}/checkpoint", run.info.run_id)
    client.set_registered_model_alias("tiny", "champion", version.version)
    spec = {"source": {"mlflow": "models:/tiny@champion"}, "model": MODEL, "tracking_uri": "sqlite"}
    done = bench.run(source, spec)
    found = load_file(done.outputs["checkpoint"].folder / "model.safetensors")
    assert set(found) == {"0.bias", "0.weight", "2.bias", "2.weight"}
    with pytest.raises(TrackingError, match="tiny@challenger"):
        bench.run(source, {**spec, "source": {"mlflow": "models:/tiny@challenger"}})
