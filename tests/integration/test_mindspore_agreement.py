"""Coverage for MindSpore Lite says what its real converter does; the whole table is `benchmarks/agreement.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.agreement import RIGHT_DB, judge, sqnr_db
from support.ascend_tools import mindspore_lite_python, needs_mindspore_lite
from support.zoo import ZOO, Sketch

from orchestrator.ascend.mindspore_lite import MindSporeLite

pytestmark = needs_mindspore_lite


@pytest.fixture(scope="module")
def lite() -> MindSporeLite:
    python = mindspore_lite_python()
    assert python is not None
    return MindSporeLite(python)


@pytest.mark.parametrize(
    ("name", "form", "verdict", "outcome"),
    [
        ("embedding", "as is", "ok", "ok"),
        ("lstm", "fixed", "ok", "ok"),
        ("layernorm", "prepared", "ok", "ok"),
        ("residual", "fixed", "ok", "ok"),
        ("gru", "prepared", "blocked", "unsupported_ops"),
        ("if_branch", "as is", "blocked", "captured_value"),
        ("hardswish", "as is", "blocked", "unsupported_ops"),
        ("cnn_bn", "as is", "blocked", "conv_strides"),
    ],
)
def test_agreement(lite: MindSporeLite, tmp_path: Path, name: str, form: str, verdict: str, outcome: str) -> None:
    zoo = ZOO[name]()
    onnx.save(zoo.model, tmp_path / "source.onnx")
    row = judge(name, form, tmp_path / "source.onnx", zoo.samples, lite, tmp_path)
    assert (row.verdict, row.outcome, row.agree) == (verdict, outcome, True), row
    assert row.parity_db is None or row.parity_db >= RIGHT_DB


@pytest.mark.parametrize("join", ["Add", "Concat", "Div", "Max", "Mul", "Sub", "Sum"])
def test_inputs_that_join_between_convolutions_are_read_through_a_reshape(
    lite: MindSporeLite, tmp_path: Path, join: str
) -> None:
    sketch = Sketch(9, opset=15)
    x = sketch.input("x", [2, 4, 6, 6])
    attributes: dict[str, Any] = {"strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1]}
    computed = sketch.op("Sigmoid", sketch.op("Conv", x, sketch.random(4, 4, 3, 3), **attributes))
    joined = sketch.op(join, x, computed, **({"axis": 1} if join == "Concat" else {}))
    channels = 8 if join == "Concat" else 4
    sketch.op("Conv", joined, sketch.random(4, channels, 3, 3), out="y", **attributes)
    sketch.output("y", [2, 4, 6, 6])
    onnx.save(onnx.shape_inference.infer_shapes(sketch.model()), tmp_path / "source.onnx")
    samples = {"x": np.random.default_rng(2).normal(size=(2, 4, 6, 6)).astype(np.float32)}
    as_is = judge(join, "as is", tmp_path / "source.onnx", samples, lite, tmp_path)
    assert (as_is.verdict, as_is.outcome) == ("unknown", "convert_failed"), as_is
    prepared = judge(join, "prepared", tmp_path / "source.onnx", samples, lite, tmp_path)
    assert (prepared.rewrites, prepared.verdict, prepared.agree) == (("reshape_joining_inputs",), "ok", True), prepared


def test_layer_normalization_loses_its_epsilon_and_prepare_saves_it(lite: MindSporeLite, tmp_path: Path) -> None:
    sketch = Sketch(7, opset=17)
    x = sketch.input("x", [4, 32])
    sketch.op(
        "LayerNormalization", x, sketch.weight(np.ones(32)), sketch.weight(np.zeros(32)), out="y", epsilon=1e-3, axis=-1
    )
    sketch.output("y", [4, 32])
    onnx.save(sketch.model(), tmp_path / "source.onnx")
    small = {"x": (np.random.default_rng(0).normal(size=(4, 32)) * 0.01).astype(np.float32)}
    as_is = judge("epsilon", "as is", tmp_path / "source.onnx", small, lite, tmp_path)
    assert as_is.parity_db is not None
    assert as_is.parity_db < 10
    assert (as_is.verdict, as_is.outcome, as_is.agree) == ("blocked", "ok", True)
    prepared = judge("epsilon", "prepared", tmp_path / "source.onnx", small, lite, tmp_path)
    assert prepared.rewrites[0] == "decompose_layer_normalization"
    assert (prepared.verdict, prepared.agree) == ("ok", True), prepared


def test_the_measure_itself() -> None:
    one: Any = np.array([1.0, np.nan, np.inf])
    assert sqnr_db(one, one) == np.inf
    assert sqnr_db(one, np.array([1.0, 0.0, np.inf])) == -np.inf
    assert sqnr_db(one, one[:2]) == -np.inf
    assert sqnr_db(one, None) == -np.inf
    assert sqnr_db(np.array([10.0, 0.0]), np.array([10.0, 1.0])) == pytest.approx(20.0)
