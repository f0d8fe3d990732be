"""Twins as files: external weights, the note, memory; and the forms of recurrent operators."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper
from support.zoo import ZOO, Sketch

from orchestrator.ascend.precision import policy
from orchestrator.core.errors import GateError
from orchestrator.graph.read import inspect_onnx
from orchestrator.graph.twin.emulate import METADATA_KEY, emulate
from orchestrator.graph.twin.rounding import session_options
from orchestrator.graph.twin.write import write_twin


def run(model: onnx.ModelProto | Path, samples: dict[str, Any]) -> list[Any]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, session_options(1), providers=["CPUExecutionProvider"]).run(None, samples)


def sqnr(reference: Any, found: Any) -> float:
    a, b = reference.astype(np.float64), found.astype(np.float64)
    return float(10 * np.log10((a**2).sum() / max(((a - b) ** 2).sum(), 1e-300)))


def external(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save_model(
        model, path, save_as_external_data=True, all_tensors_to_one_file=True, location="weights.bin", size_threshold=0
    )
    return path


@pytest.mark.parametrize("name", ["mlp", "loop", "lstm", "attention_masked"])
@pytest.mark.parametrize("soc", ["Ascend310P3", "Ascend910B4"])
def test_a_twin_of_external_weights_is_the_same_twin(name: str, soc: str, tmp_path: Path) -> None:
    graph = ZOO[name]()
    plan = policy(soc, "fp16")
    expected = run(emulate(graph.model, plan), graph.samples)
    source = external(graph.model, tmp_path / "source.onnx")
    info = write_twin(source, tmp_path / "twin", plan)
    assert inspect_onnx(info.path).opset == graph.model.opset_import[0].version
    (tmp_path / "weights.bin").unlink()  # the twin needs nothing of its source
    for one, other in zip(expected, run(info.path, graph.samples), strict=True):
        assert np.array_equal(one, other, equal_nan=True)


def test_the_note_says_what_is_emulated(tmp_path: Path) -> None:
    graph = ZOO["rmsnorm_massive"]()
    source = tmp_path / "model.onnx"
    onnx.save(graph.model, source)
    keep = ["block0/norm/square", "block0/norm/mean"]
    info = write_twin(source, tmp_path / "twin", policy("Ascend310P3", "mixed_float16"), keep=keep)
    note = json.loads((tmp_path / "twin" / "twin.json").read_text())
    assert note == json.loads(json.dumps(info.to_json()))
    assert note["mode"] == "mixed_float16"
    assert note["saturating"] is True
    assert note["keep"] == sorted(keep)
    assert "block1/norm/square/out" in note["rounded"]
    assert "block0/norm/square/out" not in note["rounded"]
    assert "block0/norm/eps" in note["kept_by_policy"]  # grey: it follows what is kept
    assert any("names" in text for text in note["assumptions"])
    assert not (tmp_path / "twin" / "model.onnx.data").exists()
    twin = onnx.load(info.path)
    assert json.loads({e.key: e.value for e in twin.metadata_props}[METADATA_KEY])["soc"] == "Ascend310P3"


def test_the_same_twin_has_the_same_bytes(tmp_path: Path) -> None:
    source = external(ZOO["mlp"]().model, tmp_path / "source.onnx")
    for folder in ("one", "two"):
        write_twin(source, tmp_path / folder, policy("Ascend310P3", "fp16"))
    for name in ("model.onnx", "model.onnx.data", "twin.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_empty_or_hostile_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(GateError):
        write_twin(tmp_path / "model.onnx", tmp_path / "twin", policy(None, "fp16"))
    assert not (tmp_path / "twin").exists()


_CHILD = """
import re, sys
from pathlib import Path
from orchestrator.ascend.precision import policy
from orchestrator.graph.twin.write import write_twin
from orchestrator.graph.read import load_model
memory = lambda key: int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
load_model(Path(sys.argv[1]), weights=False)
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = memory("VmRSS")
write_twin(Path(sys.argv[1]), Path(sys.argv[2]), policy("Ascend310P3", "fp16"))
print(memory("VmHWM") - before)
"""


def test_big_weights_pass_in_pieces(tmp_path: Path) -> None:
    s = Sketch()
    h = s.input("x", ["N", 3072])
    big = np.random.default_rng(0).random((3072, 3072), np.float32)
    for _ in range(3):
        h = s.op("MatMul", h, s.weight(big))
    s.op("Identity", h, out="y")
    s.output("y", ["N", 3072])
    model = s.model()
    source = external(model, tmp_path / "source.onnx")
    del model, s
    command = [sys.executable, "-c", _CHILD, str(source), str(tmp_path / "twin")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert float(done.stdout) < 60  # 108 MiB of weights; pieces of 4 MiB
    twin = onnx.load(tmp_path / "twin" / "model.onnx", load_external_data=False)
    assert all(item.data_location == TensorProto.EXTERNAL for item in twin.graph.initializer)
    tensor = onnx.load(tmp_path / "twin" / "model.onnx").graph.initializer[2]
    assert np.array_equal(numpy_helper.to_array(tensor), big.astype(np.float16).astype(np.float32))


def test_a_big_weight_read_both_ways_is_stored_once() -> None:
    s = Sketch()
    x = s.input("x", ["N", 2100])
    weight = s.random(2100, 2100)
    kept = s.op("MatMul", x, weight, name="kept")
    s.op("Add", kept, s.op("MatMul", x, weight, name="low"), out="y")
    s.output("y", ["N", 2100])
    model = s.model()
    plan = policy("Ascend910B4", "fp16")
    twin = emulate(model, plan, keep=["kept"])
    assert len(twin.graph.initializer) == 1
    kinds = [node.name for node in twin.graph.node]
    assert kinds.index("w0/round/up") < kinds.index("low")
    samples = {"x": np.random.default_rng(1).normal(size=(2, 2100)).astype(np.float32)}
    assert 60 < sqnr(run(model, samples)[0], run(twin, samples)[0]) < 90


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("full", [True, False])
def test_recurrent_operators_taken_apart(kind: str, direction: str, full: bool) -> None:
    """Against the runtime's own operator: only rounding may be left, about 60 dB of it."""
    s = Sketch(3, opset=11 if full else 17)
    gates, size, ways = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 5, 2 if direction == "bidirectional" else 1
    inputs = [s.input("x", [6, "N", 4]), s.random(ways, gates * size, 4, scale=0.5)]
    inputs.append(s.random(ways, gates * size, size, scale=0.5))
    if full:
        inputs += [s.random(ways, 2 * gates * size, scale=0.5), "", s.input("h0", [ways, "N", size])]
        inputs += [s.input("c0", [ways, "N", size])] if kind == "LSTM" else []
    outs = ["y", "h", "c"][: 3 if kind == "LSTM" else 2]
    linear = {"linear_before_reset": int(full)} if kind == "GRU" else {}
    s.op(kind, *inputs, out=outs, name="cell", hidden_size=size, direction=direction, **linear)
    s.output("y", [6, ways, "N", size])
    for name in outs[1:]:
        s.output(name, [ways, "N", size])
    model = s.model()
    rng = np.random.default_rng(5)
    shapes = {"x": (6, 3, 4), "h0": (ways, 3, size), "c0": (ways, 3, size)}
    samples = {item.name: rng.normal(size=shapes[item.name]).astype(np.float32) for item in model.graph.input}
    twin = emulate(model, policy("Ascend310P3", "fp16"))
    assert "Scan" in {node.op_type for node in twin.graph.node}
    for one, other in zip(run(model, samples), run(twin, samples), strict=True):
        assert one.shape == other.shape
        assert 50 < sqnr(one, other) < 90


def test_recurrent_operators_of_other_forms_stay_whole() -> None:
    s = Sketch(3)
    x = s.input("x", [6, "N", 4])
    weights = [s.random(1, 5, 4), s.random(1, 5, 5)]
    s.op("RNN", x, *weights, out=["y"], name="cell", hidden_size=5, activations=["Relu"])
    s.output("y", [6, 1, "N", 5])
    twin = emulate(s.model(), policy("Ascend310P3", "fp16"))
    assert [node.op_type for node in twin.graph.node].count("RNN") == 1
    assert any("own activations" in text for text in policy("Ascend310P3", "fp16").assumptions)


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("soc", ["Ascend310P3", "Ascend910B4"])
def test_older_opsets(opset: int, soc: str) -> None:
    s = Sketch(2, opset=opset)
    x = s.input("x", ["N", 3, 4, 4])
    h = s.op("Relu", s.op("Conv", x, s.random(4, 3, 1, 1), s.random(4)))
    h = s.op("ReduceMean", h, axes=[2, 3], keepdims=0, name="mean")
    s.op("Mul", h, s.op("Constant", value=numpy_helper.from_array(np.float32(0.3)), name="third"), out="y")
    s.output("y", ["N", 4])
    model = s.model()
    samples = {"x": np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)}
    for sums in ("fp32", "fp16"):
        twin = emulate(model, policy(soc, "fp16", accumulate=sums))
        onnx.checker.check_model(twin, full_check=True)
        assert sqnr(run(model, samples)[0], run(twin, samples)[0]) > 50


def test_what_is_left_alone_is_named(tmp_path: Path) -> None:
    s = Sketch()
    x = s.input("x", ["N", 4])
    wide = s.op("Cast", x, to=TensorProto.DOUBLE, name="wide")
    parts = s.op("SplitToSequence", s.op("Cast", wide, to=TensorProto.FLOAT), axis=0, name="parts")
    s.op("ConcatFromSequence", parts, axis=0, name="join", out="y")
    s.output("y", ["N", 4])
    onnx.save(s.model(), tmp_path / "model.onnx")
    note = write_twin(tmp_path / "model.onnx", tmp_path / "twin", policy("Ascend910B4", "fp16")).to_json()
    assert set(note["unrounded"]) == {"wide/out", "parts/out", "y"}
    assert note["unrounded"]["wide/out"] == "float64"
