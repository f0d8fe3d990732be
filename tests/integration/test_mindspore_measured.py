"""Every form that the measured limits name, converted and run by the real MindSpore Lite, beside its right neighbour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from support.agreement import RIGHT_DB, sqnr_db
from support.ascend_tools import mindspore_lite_python, needs_mindspore_lite
from support.zoo import Sketch

from orchestrator.ascend.kernels import shipped
from orchestrator.ascend.mindspore_lite import MindSporeLite
from orchestrator.core.errors import OrchestratorError
from orchestrator.graph.coverage import cover
from orchestrator.graph.coverage.judge import Question
from orchestrator.graph.coverage.limits_mindspore_measured import measured
from orchestrator.graph.coverage.nodes import nodes_of
from orchestrator.graph.prepare import prepare
from orchestrator.graph.prove import run_plain

Draw = Callable[[Sketch, str], str]
QUESTION = Question("mindspore-lite", "", "fp16", shipped(), None)


def op(kind: str, *operands: Any, **attributes: Any) -> Draw:
    """One node on the input; operands after it are constants, None leaves one out."""

    def draw(sketch: Sketch, x: str) -> str:
        names = ["" if item is None else sketch.weight(item, dtype=np.asarray(item).dtype) for item in operands]
        return sketch.op(kind, x, *names, **attributes)

    return draw


f32, i64 = np.float32, np.int64
SCALES = np.array([1, 1, 2, 2], f32)
MATRIX = np.linspace(-1, 1, 24).reshape(8, 3).astype(f32)
WRONG: dict[str, Draw] = {
    "argmax last": op("ArgMax", axis=1, select_last_index=1),
    "average pool counts padding": op("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "argmax": op("ArgMax", axis=1),
    "clip max only": op("Clip", None, f32(1)),
    "conv same lower": op("Conv", np.ones((2, 2, 2, 2), f32), strides=[1, 1], auto_pad="SAME_LOWER"),
    "conv transpose to a size": op(
        "ConvTranspose", np.ones((2, 1, 3, 3), f32), strides=[2, 2], dilations=[1, 1], output_shape=[12, 12]
    ),
    "cumsum reverse": op("CumSum", i64(3), reverse=1),
    "elu": op("Elu"),
    "leaky": op("LeakyRelu"),
    "lrn": op("LRN", size=3, alpha=1.0),
    "transpose": op("Transpose"),
    "reduce max": op("ReduceMax", axes=[1], keepdims=1),
    "reduce sum of no axes": op("ReduceSum", noop_with_empty_axes=1),
    "hard sigmoid": op("HardSigmoid", alpha=0.2, beta=0.5),
    "pow int": op("Pow", i64(2)),
    "mod": op("Mod", np.int32(3)),
    "resize cubic": op("Resize", None, SCALES, mode="cubic", coordinate_transformation_mode="half_pixel"),
    "resize nearest": op("Resize", None, SCALES, mode="nearest", coordinate_transformation_mode="half_pixel"),
    "resize linear": op("Resize", None, SCALES, mode="linear"),
    "topk smallest": op("TopK", np.array([3]), axis=3, largest=0, out=["topk/values", "topk/places"]),
    "shape start": op("Shape", start=1),
}
RIGHT: dict[str, Draw] = {
    "argmax keeps": op("ArgMax", axis=1, keepdims=1),
    "conv same upper": op("Conv", np.ones((2, 2, 2, 2), f32), strides=[1, 1], auto_pad="SAME_UPPER"),
    "conv transpose written": op("ConvTranspose", np.ones((2, 1, 3, 3), f32), strides=[2, 2], dilations=[1, 1]),
    "lrn written": op("LRN", size=3, alpha=1.0, beta=0.75, bias=1.0),
    "transpose written": op("Transpose", perm=[3, 2, 1, 0]),
    "reduce max last": op("ReduceMax", axes=[3], keepdims=1),
    "reduce min": op("ReduceMin", axes=[1], keepdims=1),
    "max of two": op("Max", f32(0)),
    "average pool": op("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]),
    "clip both": op("Clip", f32(-1), f32(1)),
    "clip min only": op("Clip", f32(-1)),
    "elu written": op("Elu", alpha=1.0),
    "leaky written": op("LeakyRelu", alpha=0.01),
    "hard sigmoid sixth": op("HardSigmoid", alpha=1 / 6, beta=0.5),
    "pow float": op("Pow", f32(2)),
    "resize torch linear": op(
        "Resize", None, SCALES, mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
    ),
    "resize torch nearest": op(
        "Resize", None, SCALES, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
    "cumsum": op("CumSum", i64(3)),
    "shape start of 0": op("Shape", start=0),
}
REFUSED: dict[str, Draw] = {
    "tan": op("Tan"),
    "prelu of a computed slope": lambda sketch, x: sketch.op("PRelu", x, sketch.op("Sigmoid", x)),
    "einsum": op("Einsum", equation="bchw->bhwc"),
    "lp": op("LpNormalization", axis=-1, p=2),
    "max of three": op("Max", f32(0), f32(1)),
    "pow of many": op("Pow", np.full((6,), 2, f32)),
    "split in one": op("Split", axis=1, out=["split/a"]),
    "flatten": op("Flatten", axis=-1),
    "max pool indices": op("MaxPool", kernel_shape=[2, 2], strides=[2, 2], out=["pool/y", "pool/i"]),
    "conv transpose": op("ConvTranspose", np.ones((2, 1, 3, 3), f32), strides=[2, 2]),
}


def model(forms: dict[str, Draw], opset: int = 15) -> onnx.ModelProto:
    sketch = Sketch(2, opset=opset)
    x = sketch.input("x", [1, 2, 6, 6])
    for number, (name, draw) in enumerate(forms.items()):
        source = x
        if name == "mod":
            source = sketch.op("Cast", x, to=onnx.TensorProto.INT32)
        if name in {"transpose", "reduce sum of no axes"}:  # left out, and the graph's input then takes their name
            source = sketch.op("Neg", x)
        drawn = draw(sketch, source)
        out = drawn if isinstance(drawn, str) else drawn[0]
        integer = name.startswith(("argmax", "shape"))
        kind = onnx.TensorProto.INT32 if name == "mod" else onnx.TensorProto.FLOAT
        sketch.op("Cast" if integer else "Identity", out, out=f"y{number}", **({"to": 1} if integer else {}))
        sketch.output(f"y{number}", None, kind)
    made = helper.make_model(sketch.graph(), opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def flagged(made: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in nodes_of(made) if any(measured(node, QUESTION))}


def samples() -> dict[str, Any]:
    x = (np.random.default_rng(3).normal(size=(1, 2, 6, 6)) * 3).astype(f32)
    x[0, 0, 0, 1] = x[0, 0, 0, 0]
    x[0, 0, 0, :] = x[0, 1, 0, :]  # ties, for ArgMax
    return {"x": x}


@needs_mindspore_lite
@pytest.mark.parametrize("forms", [WRONG, RIGHT], ids=["wrong", "right"])
def test_forms_that_convert(tmp_path: Path, forms: dict[str, Draw]) -> None:
    made = model(forms)
    onnx.save(made, tmp_path / "m.onnx")
    python = mindspore_lite_python()
    assert python is not None
    lite = MindSporeLite(python)
    lite.convert(tmp_path / "m.onnx", tmp_path / "m.mindir", timeout_s=60)
    (got,) = lite.run(tmp_path / "m.mindir", [samples()], timeout_s=60)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = dict(zip([item.name for item in session.get_outputs()], session.run(None, samples()), strict=True))
    right = {name: sqnr_db(wanted[f"y{number}"], got[f"y{number}"]) >= RIGHT_DB for number, name in enumerate(forms)}
    assert {name for name, well in right.items() if well != (forms is RIGHT)} == set()
    kinds = {node.op_type for node in made.graph.node} - {"Identity", "Cast", "Neg"}
    assert flagged(made) == (kinds if forms is WRONG else set())


LEFT_OUT: dict[str, Draw] = {
    name: WRONG[name] for name in ("argmax", "clip max only", "elu", "leaky", "lrn", "transpose")
}
LEFT_OUT |= {
    "resize linear": WRONG["resize linear"],
    "conv": op("Conv", np.ones((2, 2, 3, 3), f32)),
    "conv transpose": REFUSED["conv transpose"],
}


@needs_mindspore_lite
def test_defaults_written_out_answer_right(tmp_path: Path) -> None:
    made = model(LEFT_OUT)
    onnx.save(made, tmp_path / "m.onnx")
    done = prepare(tmp_path / "m.onnx", tmp_path / "prepared", toolchain="mindspore-lite", soc=None)
    assert [item.rewrite for item in done.applied] == ["write_out_defaults"]
    assert cover(done.path, soc=None, toolchain="mindspore-lite").verdict == "ok"
    python = mindspore_lite_python()
    assert python is not None
    lite = MindSporeLite(python)
    lite.convert(done.path, tmp_path / "m.mindir", timeout_s=60)
    (got,) = lite.run(tmp_path / "m.mindir", [samples()], timeout_s=60)
    wanted = run_plain(tmp_path / "m.onnx", samples())
    assert {name: sqnr_db(wanted[name], got[name]) >= RIGHT_DB for name in wanted} == dict.fromkeys(wanted, True)


@needs_mindspore_lite
@pytest.mark.parametrize("name", REFUSED)
def test_forms_that_are_refused(tmp_path: Path, name: str) -> None:
    made = model({name: REFUSED[name]})
    assert flagged(made)
    onnx.save(made, tmp_path / "m.onnx")
    python = mindspore_lite_python()
    assert python is not None
    with pytest.raises(OrchestratorError) as caught:
        MindSporeLite(python).convert(tmp_path / "m.onnx", tmp_path / "m.mindir", timeout_s=60)
    assert caught.value.details["reason"] in ("build_failed", "convert_failed")


def test_on_a_soc_another_runtime_builds_it() -> None:
    (node,) = [node for node in nodes_of(model({"elu": WRONG["elu"]})) if node.op_type == "Elu"]
    assert [item.verdict for item in measured(node, QUESTION)] == ["blocked"]
    there = Question("mindspore-lite", "ascend310p", "fp16", shipped(), None)
    assert [item.verdict for item in measured(node, there)] == ["unknown"]
