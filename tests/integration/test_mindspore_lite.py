"""The real MindSpore Lite 2.0.0 on a CPU: conversion, numbers, and the traps that were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from support.ascend_tools import mindspore_lite_python, needs_mindspore_lite
from support.zoo import ZOO, Sketch

from orchestrator.ascend.mindspore_lite import MindSporeLite
from orchestrator.core.errors import GateError, InfraError

pytestmark = needs_mindspore_lite
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def lite() -> MindSporeLite:
    python = mindspore_lite_python()
    assert python is not None
    return MindSporeLite(python)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def reference(model: onnx.ModelProto, inputs: dict[str, Any]) -> dict[str, Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([item.name for item in model.graph.output], session.run(None, inputs), strict=True))


def test_version(lite: MindSporeLite) -> None:
    assert lite.version() == "2.0.0"


def test_numbers_agree_with_onnx_at_any_batch_and_again_and_again(lite: MindSporeLite, tmp_path: Path) -> None:
    zoo = ZOO["attention_masked"]()
    converted = lite.convert(saved(zoo.model, tmp_path), tmp_path / "m.mindir", timeout_s=TIMEOUT_S)
    assert {item.name: item.dtype for item in converted.inputs} == {"x": "float32", "mask": "int32"}
    assert [item.name for item in converted.outputs] == [item.name for item in zoo.model.graph.output]
    assert converted.stamp.version == "2.0.0"
    one = {name: array[:1] for name, array in zoo.samples.items()}
    other = {**zoo.samples, "x": zoo.samples["x"] * np.float32(-0.5)}
    sets = [zoo.samples, one, zoo.samples, other]  # the runtime writes over its inputs: each set is given anew
    for given, got in zip(sets, lite.run(converted.path, sets, timeout_s=TIMEOUT_S), strict=True):
        for name, wanted in reference(zoo.model, given).items():
            assert got[name].shape == wanted.shape
            np.testing.assert_allclose(got[name], wanted, rtol=1e-4, atol=1e-5)


def test_wide_integers_are_cast_or_refused(lite: MindSporeLite, tmp_path: Path) -> None:
    zoo = ZOO["embedding"]()
    converted = lite.convert(saved(zoo.model, tmp_path), tmp_path / "m.mindir", timeout_s=TIMEOUT_S)
    ids = zoo.samples["ids"].astype(np.int64)
    (got,) = lite.run(converted.path, [{"ids": ids}], timeout_s=TIMEOUT_S)
    np.testing.assert_allclose(got["y"], reference(zoo.model, {"ids": ids})["y"], rtol=1e-5)
    for wrong, text in (
        ({"ids": ids + 2**40}, "holds values"),
        ({"ids": ids.astype(np.float32)}, "wants int32"),
        ({"other": ids}, "inputs are"),
    ):
        with pytest.raises(GateError, match=text):
            lite.run(converted.path, [wrong], timeout_s=TIMEOUT_S)


def test_every_operator_without_a_parser_is_named(lite: MindSporeLite, tmp_path: Path) -> None:
    sketch = Sketch(1)
    x = sketch.input("x", [2, 8])
    sketch.op("Softsign", sketch.op("HardSwish", sketch.op("Relu", x)), out="y")
    sketch.output("y", [2, 8])
    with pytest.raises(GateError, match="HardSwish, Softsign") as caught:
        lite.convert(saved(sketch.model(), tmp_path), tmp_path / "m.mindir", timeout_s=TIMEOUT_S)
    assert caught.value.details["ops"] == ["HardSwish", "Softsign"]
    assert "not support onnx data type" in str(caught.value.details["log"])
    assert not (tmp_path / "m.mindir").exists()


def test_a_converter_that_hangs_is_ended(lite: MindSporeLite, tmp_path: Path) -> None:
    path = saved(ZOO["loop_growing"]().model, tmp_path)
    with pytest.raises(InfraError, match="did not end in 3 s; it was at 'convert'"):
        lite.convert(path, tmp_path / "m.mindir", timeout_s=3)


def test_death_at_predict_is_an_error_of_ours(lite: MindSporeLite, tmp_path: Path) -> None:
    zoo = ZOO["lstm"]()  # the batch is free and no initial state is given
    converted = lite.convert(saved(zoo.model, tmp_path), tmp_path / "m.mindir", timeout_s=TIMEOUT_S)
    with pytest.raises(GateError, match="died of SIG") as caught:
        lite.run(converted.path, [zoo.samples], timeout_s=TIMEOUT_S)
    assert caught.value.details["stage"] == "predict 0"


def test_ascend_without_cann_is_told(lite: MindSporeLite) -> None:
    assert "CANN" in lite.cann_missing()


def test_external_data_beside_the_model(lite: MindSporeLite, tmp_path: Path) -> None:
    zoo = ZOO["mlp"]()
    onnx.save(zoo.model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    converted = lite.convert(tmp_path / "model.onnx", tmp_path / "m.mindir", timeout_s=TIMEOUT_S)
    (got,) = lite.run(converted.path, [zoo.samples], timeout_s=TIMEOUT_S)
    np.testing.assert_allclose(got["y"], reference(ZOO["mlp"]().model, zoo.samples)["y"], rtol=1e-4, atol=1e-6)
