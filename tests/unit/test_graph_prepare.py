"""prepare: the graph that a toolchain reads, proved, recorded, and the same bytes where nothing has to change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from orchestrator.core.errors import GateError, PlanError
from orchestrator.graph import prepare as prepare_module
from orchestrator.graph.prepare import prepare
from orchestrator.graph.read import inspect_onnx
from orchestrator.graph.rewrites import REWRITES, Changes, Context
from tests.support.zoo import ZOO

F = TensorProto.FLOAT


def save(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def group_norm(opset: int = 21) -> onnx.ModelProto:
    """A graph that no Ascend toolchain reads: GroupNormalization at opset 21, with the user's line."""
    norm = helper.make_node("GroupNormalization", ["a", "s", "b"], ["c"], "norm", num_groups=2)
    norm.metadata_props.add(key="source", value="model.py:7")
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "first"),
        norm,
        helper.make_node("ReduceMax", ["c", "axes"], ["y"], "last"),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", F, ["batch", 4, 3, 3])],
        [helper.make_tensor_value_info("y", F, ["batch", 4, 1, 1])],
        [numpy_helper.from_array(np.arange(4, dtype=np.float32), "s"),
         numpy_helper.from_array(np.ones(4, np.float32), "b"), numpy_helper.from_array(np.array([2, 3]), "axes")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("source") / "model.onnx", group_norm())


def test_a_graph_that_atc_does_not_read_is_made_one_that_it_does(source: Path, tmp_path: Path) -> None:
    samples = {"x": np.random.default_rng(0).normal(size=(9, 4, 3, 3)).astype(np.float32)}
    done = prepare(source, tmp_path, toolchain="atc", soc="Ascend310P3", samples=samples)
    assert done.path == tmp_path / "model.onnx"
    assert (done.opset, inspect_onnx(done.path).opset) == (18, 18)
    assert [(a.rewrite, a.equivalence) for a in done.applied] == [
        ("decompose_group_normalization", "tolerance"),
        ("fold_constants", "exact"),
        ("lower_opset", "exact"),
    ]
    assert done.applied[0].nodes == ("norm",)
    assert all(a.max_abs is not None and a.max_abs < 1e-6 and (a.worst_sqnr_db or 0) > 120 for a in done.applied)
    made = [n for n in onnx.load(done.path).graph.node if n.name.startswith("norm/")]
    assert len(made) >= 8
    assert all([p.value for p in n.metadata_props if p.key == "source"] == ["model.py:7"] for n in made)
    note = json.loads((tmp_path / "prepared.json").read_text())
    assert (note["toolchain"], note["soc"], note["source_opset"], note["opset"]) == ("atc", "Ascend310P3", 21, 18)
    assert [row["rewrite"] for row in note["applied"]] == [a.rewrite for a in done.applied]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "prepared.json"]


def test_the_same_bytes_every_time_and_again_over_the_old_ones(source: Path, tmp_path: Path) -> None:
    first = prepare(source, tmp_path / "a", toolchain="mindspore-lite", soc=None).path.read_bytes()
    assert prepare(source, tmp_path / "b", toolchain="mindspore-lite", soc=None).path.read_bytes() == first
    assert prepare(source, tmp_path / "b", toolchain="mindspore-lite", soc=None).path.read_bytes() == first
    assert inspect_onnx(tmp_path / "a/model.onnx").opset == 16


def test_what_lies_behind_a_group_normalization_has_no_type_at_first(tmp_path: Path) -> None:
    """ONNX infers nothing for GroupNormalization: the second one and the GELU get their types when the first is gone."""
    names = ["x", "a", "b", "c", "y"]
    kinds = ["GroupNormalization", "Relu", "GroupNormalization", "Gelu"]
    nodes = [
        helper.make_node(kind, [names[i], *(["s", "s"] if kind.startswith("Group") else [])], [names[i + 1]], f"n{i}",
                         **({"num_groups": 2} if kind.startswith("Group") else {}))
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", F, ["n", 4, 3])], [helper.make_tensor_value_info("y", F, ["n", 4, 3])],
        [numpy_helper.from_array(np.ones(4, np.float32), "s")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    done = prepare(save(tmp_path / "m.onnx", model), tmp_path / "out", toolchain="mindspore-lite", soc=None)
    assert {a.rewrite: a.nodes for a in done.applied if a.rewrite.startswith("decompose")} == {
        "decompose_gelu": ("n3",),
        "decompose_group_normalization": ("n0", "n2"),
    }
    assert done.notes == ()


@pytest.mark.parametrize("toolchain", ["atc", "onnx", "torch"])
def test_nothing_to_change_is_the_same_bytes(tmp_path: Path, toolchain: str) -> None:
    path = save(tmp_path / "zoo.onnx", ZOO["cnn_bn"]().model)
    done = prepare(path, tmp_path / "out", toolchain=toolchain, soc=None)
    assert done.applied == ()
    assert done.path.read_bytes() == path.read_bytes()


def test_switched_off_it_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        GateError, match=r"norm \(GroupNormalization\).*decompose_group_normalization|fewer|num_groups"
    ) as caught:
        prepare(source, tmp_path, toolchain="cann-ep", soc=None, switches={"decompose_group_normalization": False})
    assert caught.value.place == "model.py:7"
    assert not (tmp_path / "model.onnx").exists()


def test_an_unknown_rewrite_or_size(source: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        prepare(source, tmp_path, toolchain="atc", soc=None, switches={"decompose_gelus": True})
    assert "decompose_gelu" in caught.value.hint
    with pytest.raises(PlanError, match="'batch' has sizes"):
        prepare(source, tmp_path, toolchain="atc", soc=None, shapes={"batch": [0]})
    with pytest.raises(PlanError, match="'batch' has sizes"):
        prepare(source, tmp_path, toolchain="atc", soc=None, shapes={"batch": [10**23]})


def test_a_rewrite_that_proves_wrong_is_named_and_nothing_is_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: ir.Model, context: Context) -> Changes:
        model.graph.node(0).op_type = "Tanh"
        return Changes(["first"])

    broken = {"name_nodes": replace(REWRITES["name_nodes"], apply=wrong)}
    monkeypatch.setattr(prepare_module, "REWRITES", {**REWRITES, **broken})
    with pytest.raises(GateError, match="the rewrite name_nodes is wrong for this graph: an output moved by") as caught:
        prepare(source, tmp_path, toolchain="atc", soc=None)
    assert caught.value.details == {"rewrite": "name_nodes"}
    assert list(tmp_path.iterdir()) == []


def sized() -> onnx.ModelProto:
    """Flattens by a shape that it computes."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], "shape", start=0, end=1),
        helper.make_node("Concat", ["s", "rest"], ["t"], "concat", axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"], "reshape"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", F, ["batch", "length", 2])],
        [helper.make_tensor_value_info("y", F, ["batch", "flat"])], [numpy_helper.from_array(np.array([-1]), "rest")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_one_size_is_fixed_several_are_gears(tmp_path: Path) -> None:
    path = save(tmp_path / "sized.onnx", sized())
    samples = {"x": np.ones((8, 5, 2), np.float32)}
    fixed = prepare(
        path, tmp_path / "f", toolchain="atc", soc=None, shapes={"batch": [4], "length": [3]}, samples=samples
    )
    info = inspect_onnx(fixed.path)
    assert info.inputs[0].shape == (4, 3, 2)
    assert info.op_counts == {"Reshape": 1}
    assert [a.rewrite for a in fixed.applied] == ["fix_shapes", "fold_constants"]
    gears = prepare(
        path, tmp_path / "g", toolchain="atc", soc=None, shapes={"batch": [1, 4, 16], "width": [2]}, samples=samples
    )
    assert inspect_onnx(gears.path).inputs[0].shape == ("batch", "length", 2)
    assert gears.notes == (
        "dimension 'batch' stays dynamic; gears 1, 4, 16 go to the compiler",
        "no input has a dimension 'width': its sizes change nothing",
    )
    assert gears.path.read_bytes() == path.read_bytes()


def test_external_weights_stay_external_and_are_carried_along(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    onnx.save_model(
        group_norm(),
        path,
        save_as_external_data=True,
        location="big.data",
        size_threshold=0,
        all_tensors_to_one_file=True,
    )
    for toolchain, opset in (("mindspore-lite", 16), ("onnx", 21)):
        done = prepare(path, tmp_path / toolchain, toolchain=toolchain, soc=None)
        assert done.opset == opset
        assert inspect_onnx(done.path).external_files == ("big.data",)
        assert (tmp_path / toolchain / "big.data").read_bytes() == (tmp_path / "big.data").read_bytes()


def test_what_does_not_run_here_is_rewritten_but_said_to_be_unproved(tmp_path: Path) -> None:
    weights = {"w": np.ones((1, 12, 4), np.float32), "r": np.ones((1, 12, 3), np.float32)}
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm", hidden_size=3, layout=1)], "g",
        [helper.make_tensor_value_info("x", F, [2, 5, 4])], [helper.make_tensor_value_info("y", F, [2, 5, 1, 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    done = prepare(save(tmp_path / "m.onnx", model), tmp_path / "out", toolchain="atc", soc=None)
    assert [(a.rewrite, a.max_abs) for a in done.applied] == [("lower_opset", None)]
    assert "not proved" in done.notes[0]


def test_quantised_nodes_are_reported_with_what_to_do(tmp_path: Path) -> None:
    nodes: list[Any] = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"], "back"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", F, [4])], [helper.make_tensor_value_info("y", F, [4])],
        [numpy_helper.from_array(np.float32(0.1), "s")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = save(tmp_path / "m.onnx", model)
    done = prepare(path, tmp_path / "out", toolchain="atc", soc=None)
    assert "2 quantised nodes (quantise, back)" in done.notes[0]
    assert "AMCT" in done.notes[0]
    assert done.path.read_bytes() == path.read_bytes()
