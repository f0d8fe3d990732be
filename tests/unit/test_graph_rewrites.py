"""Each pass by itself: what it removes, that the answers stay, and that it leaves alone what it is not for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.small_graphs import graph, node

from orchestrator.ascend.quirks import QUIRKS, quirk
from orchestrator.core.errors import InternalError
from orchestrator.graph.prove import run_plain
from orchestrator.graph.rewrites import REWRITES, Changes, Context, rewrite_for
from orchestrator.recipe.rewrite_names import REWRITE_NAMES

F, I64, BOOL, F64 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE
RNG = np.random.default_rng(3)


def change(
    model: onnx.ModelProto, name: str, toolchain: str = "atc", **context: Any
) -> tuple[onnx.ModelProto, Changes]:
    changed = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    told = Context(toolchain, context.pop("opset", 18), **context)
    changes = REWRITES[name].apply(changed, told)
    done = ir.to_proto(changed)
    onnx.checker.check_model(done, full_check=True)
    names = [n.name for n in ir.traversal.RecursiveGraphIterator(changed.graph)]
    assert len(set(names)) == len(names)
    assert REWRITES[name].apply(changed, told).nodes == []
    return done, changes


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


def outputs(path: Path, model: onnx.ModelProto, inputs: dict[str, Any]) -> dict[str, Any]:
    path.write_bytes(model.SerializeToString())
    return run_plain(path, inputs)


def same(
    tmp_path: Path, before: onnx.ModelProto, after: onnx.ModelProto, inputs: dict[str, Any], atol: float = 1e-6
) -> None:
    expected, found = outputs(tmp_path / "a", before, inputs), outputs(tmp_path / "b", after, inputs)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, atol=atol, rtol=1e-6)


WILD = np.array([[-np.inf, -3, -1, -0.0, 0, 0.5, 1, 3, np.inf, np.nan]], np.float32)
COMPOSITES: dict[str, tuple[dict[str, Any], int]] = {
    "Softsign": ({}, F), "Tan": ({}, F), "Selu": ({"gamma": 1.2}, F), "Celu": ({"alpha": 0.5}, F), "IsNaN": ({}, BOOL),
    "ThresholdedRelu": ({"alpha": 0.7}, F), "ArgMin": ({"axis": 1}, I64),
    "GreaterOrEqual": ({}, BOOL), "LessOrEqual": ({}, BOOL),
}  # fmt: skip


@pytest.mark.parametrize("kind", COMPOSITES)
def test_composites(tmp_path: Path, kind: str) -> None:
    attributes, dtype = COMPOSITES[kind]
    pair = ["x", "x2"] if kind.endswith("OrEqual") else ["x"]
    model = graph([node(kind, pair, **attributes)], {name: (F, [1, 10]) for name in pair}, outputs={"y": (dtype, None)})
    done, changes = change(model, "decompose_composites", "mindspore-lite", forced=True)
    assert changes.nodes == ["n"]
    assert kind not in ops(done)
    values = np.nan_to_num(WILD, nan=1.0, posinf=5.0, neginf=-5.0) if dtype != BOOL else WILD
    same(tmp_path, model, done, {"x": values, "x2": WILD[:, ::-1].copy()})


def test_what_the_toolchain_reads_stays() -> None:
    model = graph([node("IsNaN", ["x"])], {"x": (F, [2])}, outputs={"y": (BOOL, None)})
    assert change(model, "decompose_composites", "atc")[1].nodes == []
    assert change(model, "decompose_composites", "cann-ep")[1].nodes == ["n"]


@pytest.mark.parametrize("kind", ["ReduceL1", "ReduceL2"])
def test_reduce_norms_for_atc_at_18_only(tmp_path: Path, kind: str) -> None:
    model = graph([node(kind, ["x", "a"], keepdims=0)], {"x": (F, [3, 4])}, {"a": np.array([1])})
    done, _ = change(model, "decompose_reduce_norms")
    assert kind not in ops(done)
    same(tmp_path, model, done, {"x": RNG.normal(size=(3, 4)).astype(np.float32)})
    assert change(model, "decompose_reduce_norms", "atc", opset=17)[1].nodes == []


def test_instance_normalization_of_no_image_for_mindspore_lite(tmp_path: Path) -> None:
    weights = {"s": np.array([1, 2, 3], np.float32), "b": np.array([3, 2, 1], np.float32)}
    model = graph([node("InstanceNormalization", ["x", "s", "b"], epsilon=0.1)], {"x": (F, [2, 3, 5])}, weights)
    done, _ = change(model, "decompose_instance_normalization", "mindspore-lite")
    same(tmp_path, model, done, {"x": RNG.normal(size=(2, 3, 5)).astype(np.float32)})
    image = graph([node("InstanceNormalization", ["x", "s", "b"])], {"x": (F, [2, 3, 5, 5])}, weights)
    assert change(image, "decompose_instance_normalization", "mindspore-lite")[1].nodes == []


def test_a_small_input_shows_that_the_epsilon_is_kept(tmp_path: Path) -> None:
    model = graph(
        [node("LayerNormalization", ["x", "s"], epsilon=1e-3)], {"x": (F, [4, 8])}, {"s": np.ones(8, np.float32)}
    )
    done, changes = change(model, "decompose_layer_normalization", "mindspore-lite")
    assert changes.nodes == ["n"]
    same(tmp_path, model, done, {"x": (RNG.normal(size=(4, 8)) * 0.01).astype(np.float32)})
    assert change(model, "decompose_layer_normalization", "atc")[1].nodes == []
    assert change(model, "decompose_layer_normalization", "atc", forced=True)[1].nodes == ["n"]


def test_float64_inside_becomes_float32_and_the_interface_stays(tmp_path: Path) -> None:
    body = helper.make_graph(
        [node("Mul", ["m", "w"], ["v"], "mul")], "then", [], [helper.make_tensor_value_info("v", F64, [3])]
    )
    other = helper.make_graph(
        [node("Identity", ["m"], ["u"], "id")], "else", [], [helper.make_tensor_value_info("u", F64, [3])]
    )
    model = graph(
        [node("Cast", ["f"], ["d"], "cast", to=F64), node("Add", ["x", "d"], ["m"], "add"),
         node("If", ["c"], ["y"], "if", then_branch=body, else_branch=other),
         node("ReduceSum", ["y"], ["z"], "sum", keepdims=0)],
        {"x": (F64, [3]), "f": (F, [3]), "c": (BOOL, [])}, {"w": np.array([1.5, 2, 3])},
        outputs={"y": (F64, [3]), "z": (F64, [])},
    )  # fmt: skip
    done, changes = change(model, "narrow_float64")
    assert {"add", "mul", "cast", "if"} <= set(changes.nodes)
    assert [v.type.tensor_type.elem_type for v in (*done.graph.input, *done.graph.output)] == [F64, F, BOOL, F64, F64]
    assert done.graph.initializer[0].data_type == F
    feed = {"x": np.array([1.0, 2, 3]), "f": np.ones(3, np.float32), "c": np.array(True)}
    same(tmp_path, model, done, feed)


def test_a_float64_weight_that_float32_cannot_hold_is_noted() -> None:
    model = graph([node("Mul", ["x", "w"])], {"x": (F64, [1])}, {"w": np.array([1e300])}, outputs={"y": (F64, [1])})
    assert "1e+300" in change(model, "narrow_float64")[1].notes[0]


def test_int64_inputs_become_int32_through_moves_look_ups_and_comparisons(tmp_path: Path) -> None:
    model = graph(
        [node("Unsqueeze", ["ids", "one"], ["a"], "un"), node("Gather", ["table", "a"], ["y"], "look"),
         node("Greater", ["ids", "zero"], ["b"], "gt"), node("Cast", ["ids"], ["f"], "cast", to=F),
         node("Mul", ["ids", "ids"], ["sq"], "mul"), node("Equal", ["ids", "huge"], ["never"], "eq"),
         node("Identity", ["ids"], ["same"], "id")],
        {"ids": (I64, [2, 3])},
        {"one": np.array([1]), "zero": np.array(0), "huge": np.array(2**40), "table": RNG.normal(size=(9, 4)).astype(np.float32)},
        outputs={"y": (F, None), "b": (BOOL, None), "f": (F, None), "sq": (I64, None), "never": (BOOL, None),
                 "same": (I64, [2, 3])},
    )  # fmt: skip
    done, changes = change(model, "narrow_int64")
    assert changes.nodes == ["ids"]
    assert done.graph.input[0].type.tensor_type.elem_type == TensorProto.INT32
    by_name = {n.name: n for n in done.graph.node}
    for name in ("un", "gt", "cast", "id"):
        assert by_name[name].input[0] == "ids"
    assert by_name["mul"].input[0] == by_name["eq"].input[0] == "ids/cast_out"
    same(tmp_path, model, done, {"ids": np.array([[1, 0, 2], [8, 3, 0]])})


@pytest.mark.parametrize(
    ("stride", "dilation", "pads", "group"), [(1, 1, [0, 0], 1), (3, 2, [40, 17], 1), (2, 1, [5, 0], 2)]
)
def test_a_long_convolution_is_split(tmp_path: Path, stride: int, dilation: int, pads: list[int], group: int) -> None:
    model = graph(
        [node("Conv", ["x", "w", "b"], strides=[stride], dilations=[dilation], pads=pads, group=group)],
        {"x": (F, [2, 4, 1400])},
        {"w": RNG.normal(size=(6, 4 // group, 600)).astype(np.float32) / 50, "b": np.arange(6, dtype=np.float32)},
    )
    done, _ = change(model, "split_large_kernel")
    sizes = [helper.get_attribute_value(a)[0] for n in done.graph.node for a in n.attribute if a.name == "kernel_shape"]
    assert sizes == [200, 200, 200]
    same(tmp_path, model, done, {"x": RNG.normal(size=(2, 4, 1400)).astype(np.float32)}, 2e-5)


def test_a_wide_kernel_is_split_along_both_axes(tmp_path: Path) -> None:
    model = graph(
        [node("Conv", ["x", "w"], pads=[1, 2, 3, 4])], {"x": (F, [1, 1, 300, 280])},
        {"w": RNG.normal(size=(1, 1, 257, 260)).astype(np.float32) / 250},
    )  # fmt: skip
    done, _ = change(model, "split_large_kernel")
    assert ops(done)["Conv"] == 4
    same(tmp_path, model, done, {"x": RNG.normal(size=(1, 1, 300, 280)).astype(np.float32)}, 2e-5)


def test_a_large_pool_takes_rows_first(tmp_path: Path) -> None:
    model = graph(
        [node("MaxPool", ["x"], kernel_shape=[17, 19], strides=[2, 3], pads=[1, 2, 3, 4])], {"x": (F, [2, 3, 40, 44])}
    )
    done, _ = change(model, "split_large_kernel")
    assert ops(done) == {"MaxPool": 2}
    same(tmp_path, model, done, {"x": RNG.normal(size=(2, 3, 40, 44)).astype(np.float32)}, 0)
    small = graph([node("MaxPool", ["x"], kernel_shape=[16, 16])], {"x": (F, [2, 3, 40, 44])})
    assert change(small, "split_large_kernel")[1].nodes == []


ONE_AXIS: dict[str, tuple[dict[str, Any], tuple[int, ...] | None]] = {
    "Conv": ({"strides": [2], "pads": [1, 2], "dilations": [2]}, (5, 4, 3)),
    "ConvTranspose": ({"strides": [2], "output_padding": [1]}, (4, 5, 3)),
    "MaxPool": ({"kernel_shape": [3], "strides": [2]}, None),
    "AveragePool": ({"kernel_shape": [3], "pads": [1, 1], "count_include_pad": 1}, None),
}


@pytest.mark.parametrize("kind", ONE_AXIS)
def test_one_axis_as_an_image(tmp_path: Path, kind: str) -> None:
    attributes, shape = ONE_AXIS[kind]
    weights = {} if shape is None else {"w": RNG.normal(size=shape).astype(np.float32)}
    model = graph([node(kind, ["x", *weights], **attributes)], {"x": (F, ["n", 4, 20])}, weights)
    done, _ = change(model, "conv1d_to_2d")
    assert [n.op_type for n in done.graph.node] == ["Unsqueeze", kind, "Squeeze"]
    same(tmp_path, model, done, {"x": RNG.normal(size=(2, 4, 20)).astype(np.float32)})


def test_folding_takes_small_constants_and_known_sizes_and_leaves_the_rest(tmp_path: Path) -> None:
    model = graph(
        [node("Shape", ["x"], ["s"], "shape"), node("Gather", ["s", "one"], ["c"], "pick"),
         node("Mul", ["c", "two"], ["d"], "twice"), node("Unsqueeze", ["d", "zero"], ["e"], "un"),
         node("Concat", ["minus", "e"], ["f"], "cat", axis=0), node("Reshape", ["x", "f"], ["r"], "reshape"),
         node("RandomNormal", [], ["noise"], "noise", shape=[8]), node("Mul", ["noise", "nothing"], ["g"], "quiet"),
         node("ConstantOfShape", ["big"], ["h"], "fill"), node("ReduceSum", ["h"], ["total"], "total", keepdims=0),
         node("Add", ["r", "g"], ["i"], "add"), node("Add", ["i", "total"], ["y"], "end")],
        {"x": (F, [6, 4])},
        {"one": np.array(1), "two": np.array(2), "zero": np.array([0]), "minus": np.array([-1]),
         "nothing": np.float32(0), "big": np.array([1000, 1000])},
    )  # fmt: skip
    done, changes = change(model, "fold_constants")
    assert set(changes.nodes) == {"shape", "pick", "twice", "un", "cat"}
    assert ops(done)["RandomNormal"] == ops(done)["ConstantOfShape"] == 1
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in done.graph.initializer}
    np.testing.assert_array_equal(weights["f"], [-1, 8])
    assert set(weights) == {"f", "nothing", "big"}
    same(tmp_path, model, done, {"x": np.ones((6, 4), np.float32)})


def test_names_and_dilations() -> None:
    nodes = [node("Relu", ["x"], ["a"], ""), node("Relu", ["a"], ["b"], "r"), node("Relu", ["b"], ["y"], "r")]
    done, changes = change(graph(nodes, {"x": (F, [1])}), "name_nodes")
    assert changes.nodes == [n.name for n in (done.graph.node[0], done.graph.node[2])] == ["node_Relu", "r_1"]
    pool = [node("MaxPool", ["x"], ["a"], "p", kernel_shape=[2, 2], dilations=[1, 1]),
            node("MaxPool", ["a"], ["y"], "q", kernel_shape=[2, 2], dilations=[2, 1])]  # fmt: skip
    done, changes = change(graph(pool, {"x": (F, [1, 1, 9, 9])}), "strip_dilations", "mindspore-lite")
    assert changes.nodes == ["p"]


def test_fixed_images_that_join_are_read_through_a_reshape(tmp_path: Path) -> None:
    nodes = [node("Transpose", ["x"], ["turned"], "turn", perm=[0, 1, 3, 2]), node("Relu", ["x"], ["r"], "relu"),
             node("Add", ["turned", "r"], ["s"], "first"), node("Mul", ["s", "x"], ["t"], "second"),
             node("Add", ["t", "w"], ["u"], "weight"), node("Add", ["x", "x"], ["v"], "inputs"),
             node("Sub", ["u", "v"], ["y"], "computed")]  # fmt: skip
    weight = {"w": np.ones((1, 3, 1, 1), np.float32)}
    model = graph(nodes, {"x": (F, [2, 3, 4, 4])}, weight)
    done, changes = change(model, "reshape_joining_inputs", "mindspore-lite")
    assert changes.nodes == ["first", "second"]
    same(tmp_path, model, done, {"x": RNG.normal(size=(2, 3, 4, 4)).astype(np.float32)})
    free = graph(nodes, {"x": (F, ["n", 3, 4, 4])}, weight)
    assert not change(free, "reshape_joining_inputs", "mindspore-lite")[1]


def test_shapes_in_part_are_sliced_for_mindspore_lite(tmp_path: Path) -> None:
    model = graph([node("Shape", ["x"], start=-2, end=3)], {"x": (F, ["a", "b", "c", 2])}, outputs={"y": (I64, [1])})
    done, _ = change(model, "slice_shape", "mindspore-lite")
    assert ops(done) == {"Shape": 1, "Slice": 1}
    same(tmp_path, model, done, {"x": np.zeros((3, 4, 5, 2), np.float32)})


DEFAULTS: dict[str, tuple[list[Any], dict[str, Any], set[str]]] = {
    "ArgMax": ([], {"axis": 1}, {"keepdims"}),
    "Conv": ([np.ones((3, 2, 2, 2), np.float32)], {"dilations": [2, 2]}, {"strides"}),
    "ConvTranspose": ([np.ones((2, 1, 2, 2), np.float32)], {}, {"strides", "dilations"}),
    "Elu": ([], {}, {"alpha"}),
    "LRN": ([], {"size": 3, "alpha": 1.0}, {"beta", "bias"}),
    "LeakyRelu": ([], {}, {"alpha"}),
    "Resize": ([None, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}, {"coordinate_transformation_mode"}),
    "Transpose": ([], {}, {"perm"}),
}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults_are_written_out_for_mindspore_lite(tmp_path: Path, kind: str) -> None:
    operands, attributes, written = DEFAULTS[kind]
    names = ["" if item is None else f"w{place}" for place, item in enumerate(operands)]
    weights = {f"w{place}": item for place, item in enumerate(operands) if item is not None}
    kinds: dict[str, tuple[int, list[Any] | None]] = {"y": (I64 if kind == "ArgMax" else F, [None] * 4)}
    model = graph([node(kind, ["x", *names], **attributes)], {"x": (F, [2, 2, 4, 5])}, weights, outputs=kinds)
    done, changes = change(model, "write_out_defaults", "mindspore-lite")
    assert changes.nodes == ["n"]
    assert {item.name for item in done.graph.node[0].attribute} == {*attributes, *written}
    same(tmp_path, model, done, {"x": RNG.normal(size=(2, 2, 4, 5)).astype(np.float32)})


@pytest.mark.parametrize(("kind", "dtype"), [(F, np.float32), (TensorProto.INT32, np.int32)])
def test_the_lower_bound_of_clip_is_written_out(tmp_path: Path, kind: int, dtype: Any) -> None:
    model = graph([node("Clip", ["x", "", "m"])], {"x": (kind, [4])}, {"m": dtype(3)}, outputs={"y": (kind, [4])})
    done, changes = change(model, "write_out_defaults", "mindspore-lite")
    assert changes.nodes == ["n"]
    assert done.graph.node[0].input[1] == "n/min"
    lowest = np.finfo(dtype).min if kind == F else np.iinfo(dtype).min
    same(tmp_path, model, done, {"x": np.array([lowest, -2, 3, 7], dtype)})


@pytest.mark.parametrize(
    ("model", "stuck"),
    [
        (graph([node("Clip", ["x", "m"])], {"x": (F, [4])}, {"m": np.float32(3)}, outputs={"y": (F, [4])}), 0),
        (graph([node("Clip", ["x"], max=3.0)], {"x": (F, [4])}, opset=10, outputs={"y": (F, [4])}), 0),
        (graph([node("Resize", ["x", "s"], mode="linear")], {"x": (F, [1, 1, 2, 2])},
               {"s": np.array([1, 1, 2, 2], np.float32)}, opset=10, outputs={"y": (F, [1, 1, 4, 4])}), 0),
        (graph([node("Transpose", ["x"], perm=[1, 0])], {"x": (F, [4, 2])}, outputs={"y": (F, [2, 4])}), 0),
        (graph([node("Reshape", ["x", "s"], ["r"], "r"), node("Transpose", ["r"])],
               {"x": (F, [4, 2]), "s": (I64, ["rank"])}, outputs={"y": (F, None)}), 1),
    ],
)  # fmt: skip
def test_what_needs_no_default_stays(model: onnx.ModelProto, stuck: int) -> None:
    changed = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    changes = REWRITES["write_out_defaults"].apply(changed, Context("mindspore-lite", 18))
    assert changes.nodes == []
    assert len(changes.stuck) == stuck


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_an_lstm_is_written_in_full_for_mindspore_lite(tmp_path: Path, direction: str) -> None:
    count = 2 if direction == "bidirectional" else 1
    weights = {"w": RNG.normal(size=(count, 12, 4)), "r": RNG.normal(size=(count, 12, 3))}
    model = graph(
        [node("LSTM", ["x", "w", "r"], ["", "y"], "rnn", hidden_size=3, direction=direction)], {"x": (F, [5, 2, 4])},
        {name: value.astype(np.float32) for name, value in weights.items()},
    )  # fmt: skip
    done, changes = change(model, "complete_lstm", "mindspore-lite")
    assert changes.nodes == ["rnn"]
    assert list(done.graph.node[0].output) == ["rnn/y", "y", "rnn/y_c"]
    assert list(done.graph.node[0].input) == ["x", "w", "r", "", "", "rnn/initial_h", "rnn/initial_c"]
    same(tmp_path, model, done, {"x": RNG.normal(size=(5, 2, 4)).astype(np.float32)})


@pytest.mark.parametrize(
    ("op_type", "opset", "toolchain", "expected"),
    [
        ("GroupNormalization", 21, "atc", "decompose_group_normalization"),
        ("Gelu", 20, "cann-ep", "decompose_gelu"),
        ("LayerNormalization", 17, "mindspore-lite", "decompose_layer_normalization"),
        ("MaxPool", 16, "mindspore-lite", "strip_dilations"),
        ("Relu", 21, "atc", "lower_opset"),
        ("Relu", 18, "atc", None),
        ("NonMaxSuppression", 18, "atc", None),
        ("Gelu", 20, "onnx", None),
        ("Attention", 23, "atc", None),
    ],
)
def test_rewrite_for(op_type: str, opset: int, toolchain: str, expected: str | None) -> None:
    assert rewrite_for(op_type, "", opset, toolchain) == expected
    assert rewrite_for(op_type, "com.example", opset, toolchain) is None


def test_every_quirk_that_names_a_rewrite_has_one_and_approximate_ones_are_off() -> None:
    for name, found in QUIRKS.items():
        assert quirk(name) is found
        assert found.rewrite == "" or found.rewrite in REWRITES
        assert all((found.toolchain, found.versions, found.effect, found.remedy, found.source))
    assert REWRITES["strip_dilations"].quirks == ("mindspore-lite-2.0.0-maxpool-dilations",)
    assert all(not r.default for r in REWRITES.values() if r.equivalence == "approximate")
    with pytest.raises(InternalError, match="no quirk 'gone'"):
        quirk("gone")


def test_recipes_know_exactly_the_rewrites_that_there_are() -> None:
    assert sorted(REWRITES) == sorted(REWRITE_NAMES)
