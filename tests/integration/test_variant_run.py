"""A variant run where its device is not: MindSpore Lite's CPU form, by its real runtime, against ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support.ascend_tools import mindspore_lite_python, needs_mindspore_lite

from orchestrator.ascend.mindspore_lite import MindSporeLite
from orchestrator.bundle.variant import Variant, write_variant
from orchestrator.graph.prepare import prepare
from orchestrator.graph.read import inspect_onnx
from orchestrator.graph.run_onnx import OnnxModel
from orchestrator.steps.variant_run import device_of, run_variant, why_not_here

WEIGHTS = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


def graph(folder: Path, batch: int | str) -> Path:
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    made = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
            helper.make_node("Relu", ["h"], ["y"], name="relu"),
        ],
        "main",
        [helper.make_tensor_value_info("x", float32, [batch, 6])],
        [helper.make_tensor_value_info("y", float32, [batch, 3])],
        [onnx.numpy_helper.from_array(WEIGHTS, "w")],
    )
    path = folder / "source.onnx"
    onnx.save_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


@needs_mindspore_lite
@pytest.mark.parametrize("batch", ["batch", 4])
def test_the_cpu_form_answers_every_sample_whatever_the_batch(tmp_path: Path, batch: int | str) -> None:
    python = mindspore_lite_python()
    prepared = prepare(graph(tmp_path, batch), tmp_path / "graph", toolchain="mindspore-lite", soc="Ascend310P3")
    folder = tmp_path / "variant"
    folder.mkdir()
    converted = MindSporeLite(Path(str(python))).convert(prepared.path, folder / "model.mindir", timeout_s=120)
    info = inspect_onnx(prepared.path)
    variant = write_variant(
        Variant(
            folder=folder, bundle="sha256:" + "a" * 64, target="npu", format="mindir", soc="Ascend310P3",
            precision="fp16", runtime="twin", toolchain={"name": "mindspore-lite", "version": converted.version},
            rehearsal=True, compiled=False, skipped="no CANN",
            inputs=[spec.to_json() for spec in info.inputs], outputs=[spec.to_json() for spec in info.outputs],
            facts={"mindir": {"file": "model.mindir", "form": "general"}},
        )
    )  # fmt: skip
    tools = {"mindspore_lite_python": str(python)}
    assert why_not_here(variant, tools) == ""
    assert device_of(variant) == "cpu (mindspore-lite 2.0.0, rehearsal)"
    samples = {"x": np.random.default_rng(1).standard_normal((10, 6)).astype(np.float32)}  # not a multiple of 4
    found = run_variant(variant, samples, tools)
    assert found["y"].shape == (10, 3)
    np.testing.assert_allclose(found["y"], np.maximum(samples["x"] @ WEIGHTS, 0), rtol=1e-5, atol=1e-5)
    assert OnnxModel(prepared.path).inputs[0].name == "x"


def test_what_cannot_run_here_says_why(tmp_path: Path) -> None:
    fields = {"folder": tmp_path, "bundle": "sha256:" + "a" * 64, "target": "npu", "format": "om", "soc": "Ascend310P3"}
    fields |= {"precision": "fp16", "toolchain": {"name": "atc", "version": "8.1"}}
    twin = Variant(**fields, runtime="twin", rehearsal=True, compiled=False, skipped="no ATC")
    assert why_not_here(twin, {}) == "not compiled (no ATC); the twin stands in"
    compiled = Variant(**fields, runtime="om", rehearsal=False, compiled=True)
    assert why_not_here(compiled, {}) == "compiled for Ascend310P3, and there is no such device here"
