"""Reading ONNX files: damaged and hostile ones are typed errors, found before any C++ parser sees them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from orchestrator.core.errors import GateError, IntegrityError, UserCodeError
from orchestrator.graph.limits import Limits
from orchestrator.graph.read import inspect_onnx, model_file, write_onnx_json
from orchestrator.graph.run_onnx import OnnxModel
from orchestrator.graph.spec import TensorSpec


def make_model(*, opset: int = 17, batch: int | str = "n") -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="test")


def saved(folder: Path, model: onnx.ModelProto | bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def external(model: onnx.ModelProto, **entries: str) -> onnx.ModelProto:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return model


def test_what_is_read(tmp_path: Path) -> None:
    info = inspect_onnx(saved(tmp_path, make_model()))
    assert info.opsets == {"": 17}
    assert (info.opset, info.ir_version, info.producer, info.node_count) == (17, 8, "test", 1)
    assert info.inputs == (TensorSpec("x", "float32", ("n", 4)),)
    assert info.outputs == (TensorSpec("y", "float32", ("n", 4)),)
    assert dict(info.op_counts) == {"MatMul": 1}
    written = json.loads(write_onnx_json(tmp_path, info, "source").read_text())
    assert written["exporter"] == "source"
    assert written["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["n", 4]}]


def test_external_data_beside_the_model_is_fine(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.eye(4, dtype=np.float32).tobytes())
    path = saved(tmp_path, external(make_model(), location="w.bin", offset="0", length="64"))
    assert inspect_onnx(path).external_files == ("w.bin",)
    np.testing.assert_array_equal(OnnxModel(path)({"x": np.ones((2, 4), np.float32)})["y"], np.ones((2, 4)))


def test_missing_external_data_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="no such file") as caught:
        inspect_onnx(saved(tmp_path, external(make_model(), location="w.bin", offset="0", length="64")))
    assert caught.value.hint.startswith("put w.bin (its weights) beside")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../w.bin"}, "plain file name"),
        ({"location": "/etc/passwd"}, "plain file name"),
        ({"location": "sub/w.bin"}, "plain file name"),
        ({"location": ".."}, "plain file name"),
        ({"location": ""}, "plain file name"),
        ({"location": "a\\b"}, "plain file name"),
        ({"location": "absent.bin"}, "cannot be read"),
        ({"location": "link.bin"}, "link or no regular"),
        ({"location": "hard.bin"}, "link or no regular"),
        ({"location": "pipe"}, "link or no regular"),
        ({"location": "w.bin", "offset": "4", "length": "64"}, "which has 64"),
        ({"location": "w.bin", "offset": "-1"}, "offset '-1'"),
        ({"location": "w.bin", "offset": "9" * 30}, "offset '999"),
        ({"location": "w.bin", "offset": "9" * 18}, "which has 64"),
        ({"location": "w.bin", "length": "9" * 40}, "length '999"),
        ({"location": "w.bin", "length": "60"}, "dimensions say 64"),
        ({"location": "w.bin", "checksum": "0"}, "keys"),
        ({"location": "w.bin", "__class__": "0"}, "keys"),
        ({"offset": "0"}, "keys"),
    ],
)
def test_hostile_external_data(tmp_path: Path, entries: dict[str, str], message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(b"\0" * 64)
    (tmp_path / "w.bin").write_bytes(b"\0" * 64)
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (tmp_path / "other").write_bytes(b"\0" * 64)
    os.link(tmp_path / "other", folder / "hard.bin")
    os.mkfifo(folder / "pipe")
    with pytest.raises(GateError, match=message):
        inspect_onnx(saved(folder, external(make_model(), **entries)))


def test_external_data_hidden_in_other_places(tmp_path: Path) -> None:
    """In a sparse initializer, in an attribute and in a subgraph: the places that runtimes forget."""
    outside = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../secret")

    sparse = make_model()
    sparse.graph.sparse_initializer.add().values.CopyFrom(outside)
    attribute = make_model()
    attribute.graph.node[0].attribute.append(helper.make_attribute("value", outside))
    inner = helper.make_graph([helper.make_node("Identity", ["w"], ["z"])], "inner", [], [], [outside])
    subgraph = make_model()
    subgraph.graph.node[0].attribute.append(helper.make_attribute("body", inner))
    listed = make_model()
    listed.graph.node[0].attribute.append(helper.make_attribute("bodies", [inner]))
    for model in (sparse, attribute, subgraph, listed):
        with pytest.raises(GateError, match="plain file name"):
            inspect_onnx(saved(tmp_path, model))


def nested(depth: int) -> onnx.ModelProto:
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "leaf", [], [])
    for _ in range(depth):
        node = helper.make_node("If", ["x"], ["z"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "g", [], [])
    model = make_model()
    model.graph.node.extend(graph.node)
    return model


@pytest.mark.parametrize("depth", [9, 11])
def test_deep_nesting_is_refused_quickly(tmp_path: Path, depth: int) -> None:
    with pytest.raises(GateError, match="nested deeper"):
        inspect_onnx(saved(tmp_path, nested(depth)), limits=Limits(depth=8))


def edited(change) -> onnx.ModelProto:
    model = make_model()
    change(model)
    return model


def add_function(model: onnx.ModelProto) -> None:
    body = [helper.make_node("Self", ["x"], ["y"], domain="own")]
    model.functions.append(helper.make_function("own", "Self", ["x"], ["y"], body, [helper.make_opsetid("own", 1)]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.ClearField("graph"), "no graph"),
        (lambda m: m.graph.ClearField("node"), "no graph"),
        (lambda m: m.ClearField("opset_import"), "no opset"),
        (lambda m: m.opset_import.extend([helper.make_opsetid("", 11)]), "imported twice"),
        (lambda m: m.opset_import.extend([helper.make_opsetid("ai.onnx", 11)]), "imported twice"),
        (lambda m: m.opset_import.extend([helper.make_opsetid("com.evil", 1)]), "not allowed"),
        (
            lambda m: m.graph.node.extend([helper.make_node("PyOp", ["x"], ["q"], domain="ai.onnx.contrib")]),
            "not allowed",
        ),
        (lambda m: m.ClearField("ir_version"), "ir_version"),
        (lambda m: m.graph.node.add(name="nameless"), "no operator"),
        (lambda m: m.training_info.add(), "training"),
        (add_function, "local functions"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, -4), "dimensions"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, 5), "dimensions say 80"),
        (lambda m: m.graph.initializer[0].dims.extend([2**31, 2**31]), "declares"),
        (lambda m: m.graph.initializer[0].dims.extend([1] * 40), "dimensions"),
        (lambda m: m.graph.node[0].ClearField("input"), "checker"),
        (lambda m: m.graph.node[0].__setattr__("op_type", "NoSuchOp"), "checker"),
        (lambda m: m.graph.output[0].type.tensor_type.__setattr__("elem_type", TensorProto.STRING), "STRING"),
        (lambda m: m.graph.output[0].type.sequence_type.elem_type.tensor_type.__setattr__("elem_type", 1), "no tensor"),
    ],
)
def test_damaged_and_hostile_models(tmp_path: Path, change, message: str) -> None:
    with pytest.raises(GateError, match=message):
        inspect_onnx(saved(tmp_path, edited(change)))


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"garbage" * 9, b"PK\x03\x04" + b"\0" * 64, b"\x0a\xff\xff\xff\xff\x0f", b"<html></html>"]
)
def test_files_that_are_no_onnx(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(GateError):
        inspect_onnx(saved(tmp_path, data))


def test_absent_folder_and_too_big(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="cannot be read"):
        inspect_onnx(tmp_path / "absent.onnx")
    with pytest.raises(GateError, match="not a regular file"):
        inspect_onnx(tmp_path)
    with pytest.raises(GateError, match="bytes, expected 1 to 10"):
        inspect_onnx(saved(tmp_path, make_model()), limits=Limits(file_size_bytes=10))
    with pytest.raises(GateError, match="more than 0 nodes"):
        inspect_onnx(saved(tmp_path, make_model()), limits=Limits(nodes=0))
    with pytest.raises(IntegrityError, match=r"no model\.onnx"):
        model_file(tmp_path / "nowhere")


def test_running_in_batches(tmp_path: Path) -> None:
    path, x = saved(tmp_path, make_model()), np.arange(40, dtype=np.float32).reshape(10, 4)
    assert OnnxModel(path).device == "cpu"
    for max_batch in (None, 1, 3, 10, 64):
        np.testing.assert_array_equal(OnnxModel(path, max_batch=max_batch)({"x": x})["y"], x)


def test_a_fixed_batch_runs_in_pieces_of_that_size_only(tmp_path: Path) -> None:
    model, x = OnnxModel(saved(tmp_path, make_model(batch=2))), np.arange(24, dtype=np.float32).reshape(6, 4)
    np.testing.assert_array_equal(model({"x": x})["y"], x)
    with pytest.raises(UserCodeError, match="5 samples do not fill batches of 2"):
        model({"x": x[:5]})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"z": np.ones((2, 4), np.float32)}, "expected \\['x'\\]"),
        ({"x": np.ones((2, 4), np.float64)}, "dtype float64 is not float32"),
        ({"x": np.ones((2, 5), np.float32)}, "axis 1: expected 4 but 5"),
        ({"x": np.ones(4, np.float32)}, "rank 1 is not 2"),
    ],
)
def test_wrong_inputs_are_named(tmp_path: Path, inputs: dict, message: str) -> None:
    with pytest.raises(UserCodeError, match=message):
        OnnxModel(saved(tmp_path, make_model()))(inputs)
