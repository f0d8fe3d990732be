"""The compile step per format: compiled where the compiler is, else the twin with the reason, never pretended."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.ascend_tools import (
    mindspore_lite_python,
    needs_mindspore_lite,
    needs_onnxruntime_cann,
    onnxruntime_cann_python,
)
from support.fake_atc import FakeAtc

from orchestrator.bundle.golden import write_golden
from orchestrator.bundle.oci import BundleParts, build_layout
from orchestrator.bundle.variant import Variant, read_variant
from orchestrator.core.errors import GateError, InternalError, PlanError
from orchestrator.graph.torch_model import build as build_module
from orchestrator.graph.torch_model import predictor, save_checkpoint
from orchestrator.steps import compile as compile_step
from orchestrator.steps.api import SiteInfo, StepContext, StepResult

FACTORY = """
import torch
from layers import Block

def build():
    torch.manual_seed(0)
    return Block()
"""
LAYERS = """
import torch

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, image):
        return self.fc(image)
"""
MODEL = {
    "factory": "compiled_net:build",
    "inputs": {"image": {"dtype": "float32", "shape": ["batch", 3]}},
    "outputs": {"logits": {"dtype": "float32", "shape": ["batch", 2]}},
}


class Events:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def progress(self, done: float, total: float, text: str = "") -> None: ...

    def metric(self, name: str, value: float, step: int = 0) -> None: ...

    def message(self, text: str) -> None:
        self.messages.append(text)


class Bench:
    """A bundle, a graph, a twin and a forecast, as the steps before leave them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / "recipe"
        self.recipe.mkdir()
        (self.recipe / "compiled_net.py").write_text(FACTORY)
        (self.recipe / "layers.py").write_text(LAYERS)
        module = build_module("compiled_net:build", self.recipe).eval()
        save_checkpoint(module, root / "checkpoint")
        state = {name: value.numpy() for name, value in module.state_dict().items()}
        self.graph = write_graph(root / "graph", state["fc.weight"].T.copy(), state["fc.bias"])
        self.twin = root / "twin"
        shutil.copytree(self.graph, self.twin)
        (self.twin / "twin.json").write_text("{}")
        self.forecast = root / "forecast"
        self.forecast.mkdir()
        (self.forecast / "keep_dtype.cfg").write_text("# reasons stand beside\nblock/fc\n")
        (self.forecast / "modify_mixlist.json").write_text('{"black-list": {"to-add": ["Relu"]}}')
        samples = {"image": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}
        write_golden(root / "golden.safetensors", samples, predictor(module, ["logits"])(samples))
        parts = BundleParts(
            "tiny", self.graph, root / "golden.safetensors", {"name": "tiny"}, root / "checkpoint/model.safetensors"
        )
        self.bundle = root / "bundle"
        self.digest = build_layout(parts, self.bundle)

    def run(
        self, tmp: Path, target: Mapping[str, Any], tools: Mapping[str, str] | None = None, **spec: Any
    ) -> tuple[StepResult, Variant, Events]:
        events = Events()
        soc = target.get("soc") is not None and target["format"] != "torch"
        inputs = {"bundle": self.bundle}
        inputs |= {"graph": self.graph, "twin": self.twin, "forecast": self.forecast} if soc else {"onnx": self.graph}
        (tmp / "work").mkdir(parents=True, exist_ok=True)
        shutil.rmtree(tmp / "attempt", ignore_errors=True)
        (tmp / "attempt").mkdir()
        ctx = StepContext(
            step="compile-npu", kind="compile", recipe_dir=self.recipe, inputs=inputs, work=tmp / "work",
            out=tmp / "attempt", site=SiteInfo("local", True, tmp / "state"), attempt=1, events=events,
            spec={"model": MODEL, "target": {"name": "npu", "precision": "fp16", **target}, "tools": dict(tools or {}), **spec},
        )  # fmt: skip
        result = compile_step.run(ctx)
        variant = read_variant(result.outputs["variant"].folder)
        assert variant.digest == result.facts["variant"]
        assert variant.bundle == self.digest
        return result, variant, events


def write_graph(folder: Path, weight: Any, bias: Any) -> Path:
    folder.mkdir()
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Gemm", ["image", "w", "b"], ["logits"], name="block/fc")]
    nodes[0].metadata_props.add(key="source", value="layers.py:10")
    graph = helper.make_graph(
        nodes, "g", [value("image", TensorProto.FLOAT, ["batch", 3])], [value("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8), folder / "model.onnx"
    )
    return folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(autouse=True)
def no_cann(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH"):
        monkeypatch.delenv(name, raising=False)


OM = {"format": "om", "soc": "Ascend310P3", "shapes": {"batch": [1, 4]}}


def test_om_with_a_compiler(bench: Bench, tmp_path: Path) -> None:
    fake = FakeAtc.install(tmp_path / "cann", "ok_warnings")
    result, variant, events = bench.run(tmp_path, OM, {"atc": str(fake.program)})
    assert (variant.runtime, variant.compiled, variant.rehearsal, variant.skipped) == ("om", True, False, None)
    assert variant.toolchain == {"name": "atc", "version": "8.1.RC1:8.1.RC1"}
    assert variant.gears == ({"batch": 1}, {"batch": 4})
    assert [f.path for f in variant.files.files] == ["model.om"]
    argv = fake.starts()[0]["argv"]
    assert {"--input_shape=image:-1,3", "--dynamic_batch_size=1,4", "--precision_mode_v2=fp16"} <= set(argv)
    assert any(word.startswith("--keep_dtype=") for word in argv)
    assert not any("modify_mixlist" in word for word in argv), "only mixed modes have a mixlist"
    assert any("W11001" in line for line in events.messages)
    assert str(tmp_path) not in json.dumps(variant.to_json()), "a variant tells no paths"
    assert result.metrics["attempts"] == 1


def test_om_without_a_compiler_is_the_twin(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    _, variant, events = bench.run(tmp_path, OM)
    assert (variant.runtime, variant.compiled, variant.rehearsal) == ("twin", False, True)
    assert "no ATC on this site" in str(variant.skipped)
    assert sorted(f.path for f in variant.files.files) == ["model.onnx", "twin.json"]
    assert "--soc_version=Ascend310P3" in variant.facts["command"]
    assert any(line.startswith("SKIPPED: no ATC") for line in events.messages)


def test_wrong_options_are_found_without_a_compiler(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlanError, match="no bfloat16"):
        bench.run(tmp_path, {**OM, "precision": "mixed_bfloat16"})
    with pytest.raises(PlanError, match="'batch' varies"):
        bench.run(tmp_path, {**OM, "shapes": {}})


def test_mixed_mode_has_a_mixlist_and_origin_keeps_nothing(bench: Bench, tmp_path: Path) -> None:
    fake = FakeAtc.install(tmp_path / "cann", "ok")
    bench.run(tmp_path, {**OM, "precision": "mixed_float16"}, {"atc": str(fake.program)})
    bench.run(tmp_path, {**OM, "precision": "origin"}, {"atc": str(fake.program)})
    mixed, origin = (" ".join(start["argv"]) for start in fake.starts())
    assert "--modify_mixlist=" in mixed
    assert "--keep_dtype=" not in origin
    assert "--precision_mode_v2=origin" in origin


def test_om_refusal_names_the_line(bench: Bench, tmp_path: Path) -> None:
    fake = FakeAtc.install(tmp_path / "cann", "unsupported")
    with pytest.raises(GateError) as caught:
        bench.run(tmp_path, OM, {"atc": str(fake.program)})
    assert fake.faults() == ["unsupported"]
    fake_crash = FakeAtc.install(tmp_path / "cann2", "segv")
    with pytest.raises(InternalError, match="crashed"):
        bench.run(tmp_path, OM, {"atc": str(fake_crash.program)})
    assert "block/gelu" in caught.value.message


def test_timeout_and_kernel_cache(bench: Bench, tmp_path: Path) -> None:
    fake = FakeAtc.install(tmp_path / "cann", "hang")
    with pytest.raises(InternalError, match=r"0\.5 s, 2 times"):
        bench.run(
            tmp_path,
            {**OM, "compile": {"op_compiler_cache_mode": "enable", "timeout": 0.5}},
            {"atc": str(fake.program)},
        )
    assert fake.faults() == ["hang", "hang"]
    assert fake.alive() == []
    assert f"--op_compiler_cache_dir={tmp_path}/state/cache/kernels" in fake.starts()[0]["argv"]


def test_weights_beyond_fp16_are_told(tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bench, "graph", write_graph(tmp_path / "huge", np.full((3, 2), 1e6, np.float32), np.zeros(2, np.float32))
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    _, variant, _ = bench.run(tmp_path, OM)
    assert any("1 weights are beyond fp16 and are clipped" in line for line in variant.facts["warnings"])


def test_plain_onnx(bench: Bench, tmp_path: Path) -> None:
    _, variant, _ = bench.run(tmp_path, {"format": "onnx"})
    assert (variant.runtime, variant.compiled, variant.rehearsal) == ("onnx-cpu", True, False)


MINDIR = {"format": "mindir", "soc": "Ascend310P3", "shapes": {"batch": [1, 4]}}


def test_mindir_without_the_tool(bench: Bench, tmp_path: Path) -> None:
    _, variant, _ = bench.run(tmp_path, MINDIR)
    assert variant.runtime == "twin"
    assert "tools.mindspore_lite_python" in str(variant.skipped)


@needs_mindspore_lite
@pytest.mark.skipif(Path("/usr/local/Ascend").exists(), reason="this machine has CANN")
def test_mindir_by_the_real_converter_without_cann(bench: Bench, tmp_path: Path) -> None:
    _, variant, _ = bench.run(tmp_path, MINDIR, {"mindspore_lite_python": str(mindspore_lite_python())})
    assert (variant.runtime, variant.compiled, variant.rehearsal) == ("twin", False, True)
    assert variant.toolchain == {"name": "mindspore-lite", "version": "2.0.0"}
    assert "model.mindir is its CPU form" in str(variant.skipped)
    assert {f.path for f in variant.files.files} == {"model.mindir", "model.onnx", "twin.json"}
    assert variant.facts["mindir"]["form"] == "general"


CANN = {"format": "onnx", "soc": "Ascend310P3", "shapes": {"batch": [1, 4]}}


def test_cann_provider_without_the_tool(bench: Bench, tmp_path: Path) -> None:
    _, variant, _ = bench.run(tmp_path, CANN)
    assert variant.runtime == "twin"
    assert variant.facts["provider_options"]["precision_mode"] == "force_fp16"
    assert variant.facts["buckets"] == [{"image": [1, 3]}, {"image": [4, 3]}]
    assert any("no list of nodes" in line for line in variant.facts["warnings"])


FAKE_ORT = '''
"""onnxruntime with a CANN provider that works, as far as its contract goes."""
import json, os
__version__ = "1.24.4"
KNOWN = {known!r}
def get_available_providers(): return ["CANNExecutionProvider", "CPUExecutionProvider"]
class SessionOptions:
    enable_profiling = False
    profile_file_prefix = ""
class _Value:
    name, type, shape = "image", "tensor(float)", ["batch", 3]
class InferenceSession:
    def __init__(self, model, options, providers):
        assert os.path.isfile(model)
        self.active = {active!r}
        for name in providers[0][1]:
            if name not in KNOWN:
                raise RuntimeError("Unknown provider option: " + name)
    def get_providers(self): return self.active
    def get_inputs(self): return [_Value()]
    def run(self, outputs, feeds):
        shape = "x".join(map(str, feeds["image"].shape))
        open("graph_1_0_" + shape + ".om", "w").write("IMOD")
    def end_profiling(self):
        rows = [dict(cat="Node", name=str(i), args=dict(provider=p, node_index=str(i))) for i, p in enumerate({nodes!r})]
        open("profile.json", "w").write(json.dumps(rows))
        return "profile.json"
'''


def fake_python(tmp_path: Path, active: list[str], nodes: list[str]) -> Path:
    """An interpreter that finds our onnxruntime instead of the real one."""
    from orchestrator.ascend.cann_provider import OPTIONS

    (tmp_path / "site/onnxruntime").mkdir(parents=True)
    (tmp_path / "site/onnxruntime/__init__.py").write_text(
        FAKE_ORT.format(known=set(OPTIONS), active=active, nodes=nodes)
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/site exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def test_cann_provider_that_works(bench: Bench, tmp_path: Path) -> None:
    both = ["CANNExecutionProvider", "CPUExecutionProvider"]
    python = fake_python(tmp_path, both, ["CANNExecutionProvider", "CPUExecutionProvider"])
    _, variant, _ = bench.run(tmp_path, CANN, {"onnxruntime_cann_python": str(python)})
    assert (variant.runtime, variant.compiled) == ("onnx-cann", True)
    assert sorted(f.path for f in variant.files.files) == [
        "cache/graph_1_0_1x3.om", "cache/graph_1_0_4x3.om", "model.onnx",
    ]  # fmt: skip
    assert any("run elsewhere" in line for line in variant.facts["warnings"])


@pytest.mark.parametrize(
    ("active", "nodes", "says"),
    [
        (["CPUExecutionProvider"], [], "fell back to CPUExecutionProvider in silence"),
        (["CANNExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"], "no node ran on"),
    ],
)
def test_cann_provider_that_only_looks_so(
    bench: Bench, tmp_path: Path, active: list[str], nodes: list[str], says: str
) -> None:
    python = fake_python(tmp_path, active, nodes)
    _, variant, _ = bench.run(tmp_path, CANN, {"onnxruntime_cann_python": str(python)})
    assert variant.runtime == "twin"
    assert says in str(variant.skipped)


@needs_onnxruntime_cann
@pytest.mark.skipif(Path("/usr/local/Ascend").exists(), reason="this machine has CANN")
def test_real_cann_provider_without_cann(bench: Bench, tmp_path: Path) -> None:
    _, variant, _ = bench.run(tmp_path, CANN, {"onnxruntime_cann_python": str(onnxruntime_cann_python())})
    assert variant.runtime == "twin"
    assert "fell back to CPUExecutionProvider in silence: libascendcl.so" in str(variant.skipped)


def test_torch_package_stands_alone(bench: Bench, tmp_path: Path) -> None:
    _, variant, _ = bench.run(tmp_path, {"format": "torch", "precision": "fp32"})
    assert (variant.runtime, variant.compiled) == ("torch", True)
    assert [f.path for f in variant.files.files] == [
        "build.json", "model.safetensors", "source/compiled_net.py", "source/layers.py",
    ]  # fmt: skip
    how = json.loads((variant.folder / "build.json").read_text())
    assert how["environment"] == {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    assert variant.facts["golden_sqnr_db"] > 100


@pytest.mark.skipif(importlib.util.find_spec("torch_npu") is not None, reason="this machine has torch_npu")
def test_torch_for_a_soc_without_torch_npu(bench: Bench, tmp_path: Path) -> None:
    _, variant, _ = bench.run(tmp_path, {"format": "torch", "soc": "Ascend910B4", "precision": "mixed_bfloat16"})
    assert (variant.runtime, variant.compiled, variant.rehearsal) == ("onnx-cpu", False, True)
    assert variant.skipped == "no torch_npu on this site"
    how = json.loads((variant.folder / "torch/build.json").read_text())
    assert how["environment"] == {"TORCH_NPU_FALLBACK_CPU_DISABLE": "1"}
    assert (how["autocast"], how["allow_hf32"]["conv"]) == ("bfloat16", False)


def test_torch_package_that_needs_more(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe").mkdir()
    hidden = "import torch\ndef build():\n    m = __import__('imp' + 'ortlib').import_module('lay' + 'ers')\n    return m.Block()\n"
    (tmp_path / "recipe/compiled_net.py").write_text(hidden)
    (tmp_path / "recipe/layers.py").write_text(LAYERS)
    monkeypatch.setattr(bench, "recipe", tmp_path / "recipe")
    with pytest.raises(GateError, match=r"does not stand alone.*No module named 'layers'"):
        bench.run(tmp_path, {"format": "torch", "precision": "fp32"})
    with pytest.raises(PlanError, match="no precision"):
        bench.run(tmp_path, {"format": "torch", "precision": "cube_fp16in_fp32out"})
