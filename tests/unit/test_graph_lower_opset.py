"""Opset down-conversion: operator by operator, over the zoo, over real torch exports, and what cannot be lowered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from support.small_graphs import graph, node

from orchestrator.core.errors import GateError
from orchestrator.graph.examples import example_inputs
from orchestrator.graph.export import export_onnx
from orchestrator.graph.prove import run_plain
from orchestrator.graph.rewrites import REWRITES, Context
from orchestrator.graph.spec import specs
from tests.support.zoo import ZOO

F, I64 = TensorProto.FLOAT, TensorProto.INT64
LOW = (17, 16, 15, 13, 11)


def load(model: onnx.ModelProto) -> ir.Model:
    """As `model_io.read_ir`, in this process: the door has tests of its own."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))


def lower(model: onnx.ModelProto, opset: int, toolchain: str = "onnx") -> onnx.ModelProto:
    """All that is needed to get down, and nothing for a toolchain's sake."""
    changed = load(model)
    context = Context(toolchain, opset)
    for rewrite in REWRITES.values():
        while rewrite.name.startswith("decompose") and (done := rewrite.apply(changed, context)):
            changed = load(ir.to_proto(changed))
            if not done.stuck:
                break
    REWRITES["lower_opset"].apply(changed, context)
    done = load(ir.to_proto(changed))
    done = ir.to_proto(done)
    onnx.checker.check_model(done, full_check=True)
    assert {entry.domain: entry.version for entry in done.opset_import} == {
        "": min(opset, model.opset_import[0].version)
    }
    return done


def same(
    tmp_path: Path, before: onnx.ModelProto, after: onnx.ModelProto, inputs: dict[str, Any], limit: float = 1e-6
) -> None:
    """Run both; outputs may differ by `limit` of their peak."""
    answers = []
    for name, model in (("before", before), ("after", after)):
        (tmp_path / name).write_bytes(model.SerializeToString())
        answers.append(run_plain(tmp_path / name, inputs))
    for name, expected in answers[0].items():
        found = answers[1][name]
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        peak = float(np.nanmax(np.abs(expected.astype(np.float64)), initial=0.0, where=np.isfinite(expected))) or 1.0
        np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=0, atol=limit * peak)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_zoo_goes_down_to_11(tmp_path: Path, name: str) -> None:
    graph = ZOO[name]()
    for opset in (16, 13, 11):
        same(tmp_path, graph.model, lower(graph.model, opset), graph.samples)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


X = {"x": (F, [2, 6, 5, 5])}
RNG = np.random.default_rng(0)
IMAGE = {"x": RNG.normal(size=(2, 6, 5, 5)).astype(np.float32)}

ONE_OP: dict[str, Callable[[], tuple[onnx.ModelProto, int]]] = {
    "reduce with axes": lambda: (graph([node("ReduceMax", ["x", "a"], keepdims=0)], X, {"a": ints(1, -1)}), 11),
    "reduce all": lambda: (graph([node("ReduceMean", ["x"])], X), 11),
    "reduce with empty axes": lambda: (graph([node("ReduceL1", ["x", "a"])], X, {"a": ints()}), 11),
    "reduce that does nothing": lambda: (graph([node("ReduceMin", ["x"], noop_with_empty_axes=1)], X), 11),
    "reduce sum": lambda: (graph([node("ReduceSum", ["x", "a"], noop_with_empty_axes=1)], X, {"a": ints(2)}), 11),
    "unsqueeze": lambda: (graph([node("Unsqueeze", ["x", "a"])], X, {"a": ints(0, -1)}), 11),
    "split evenly": lambda: (graph([node("Split", ["x"], ["y", "z"], axis=1, num_outputs=2)], X), 11),
    "split with a smaller last part": lambda: (graph([node("Split", ["x"], ["y", "z"], axis=2, num_outputs=2)], X), 11),
    "split by sizes": lambda: (graph([node("Split", ["x", "s"], ["y", "z"], axis=1)], X, {"s": ints(1, 5)}), 11),
    "reshape": lambda: (graph([node("Reshape", ["x", "s"], allowzero=1)], X, {"s": ints(2, -1)}), 11),
    "part of a shape": lambda: (
        graph([node("Shape", ["x"], start=1, end=-1)], X, outputs={"y": (I64, [2])}), 11),
    "end of a shape": lambda: (graph([node("Shape", ["x"], start=-2)], X, outputs={"y": (I64, [2])}), 11),
    "pad some axes": lambda: (
        graph([node("Pad", ["x", "p", "", "a"])], X, {"p": ints(1, 2, 0, 3), "a": ints(-1, 1)}), 11),
    "pad with a value": lambda: (
        graph([node("Pad", ["x", "p", "v"])], X, {"p": ints(0, 0, 1, 1, 0, 0, 1, 1), "v": np.float32(7)}), 11),
    "resize some axes by scale": lambda: (
        graph([node("Resize", ["x", "", "s"], axes=[2, 3], mode="linear", antialias=0)], X,
              {"s": np.array([2, 1.5], np.float32)}), 11),
    "resize some axes to a size": lambda: (
        graph([node("Resize", ["x", "", "", "s"], axes=[3, 2], mode="nearest", keep_aspect_ratio_policy="stretch")], X,
              {"s": ints(10, 7)}), 11),
    "softmax over channels": lambda: (graph([node("Softmax", ["x"], axis=1)], X), 11),
    "softmax over the last": lambda: (graph([node("LogSoftmax", ["x"])], X), 11),
    "group normalization of 18": lambda: (
        graph([node("GroupNormalization", ["x", "s", "b"], num_groups=3, epsilon=0.1)], X,
              {"s": np.array([1, 2, 3], np.float32), "b": np.array([0, 1, -1], np.float32)}), 11),
    "group normalization of 21": lambda: (
        graph([node("GroupNormalization", ["x", "s", "b"], num_groups=3, epsilon=0.1)], X,
              {"s": np.arange(6, dtype=np.float32), "b": np.ones(6, np.float32)}, opset=21), 11),
    "layer normalization from axis 2": lambda: (
        graph([node("LayerNormalization", ["x", "s"], ["y", "mean", "inverse"], axis=2, epsilon=0.01)], X,
              {"s": np.full((5, 5), 2, np.float32)},
              outputs={"y": (F, None), "mean": (F, None), "inverse": (F, None)}), 11),
    "gelu": lambda: (graph([node("Gelu", ["x"])], X, opset=20), 11),
    "gelu by tanh": lambda: (graph([node("Gelu", ["x"], approximate="tanh")], X, opset=20), 11),
    "hard swish": lambda: (graph([node("HardSwish", ["x"])], X), 11),
    "mish": lambda: (graph([node("Mish", ["x"])], X), 11),
    "swish": lambda: (graph([node("Swish", ["x"], alpha=1.5)], X, opset=24), 11),
    "rms normalization": lambda: (
        graph([node("RMSNormalization", ["x", "s"], axis=-2)], X, {"s": np.full((5, 5), 3, np.float32)}, opset=23), 11),
    "greater or equal with NaN": lambda: (
        graph([node("GreaterOrEqual", ["x", "w"])], X, {"w": np.array([0, np.nan, 1, -1, 0], np.float32)},
              outputs={"y": (TensorProto.BOOL, None)}), 11),
    "trilu": lambda: (graph([node("Trilu", ["x", "k"], upper=0)], X, {"k": np.array(1)}), 11),
    "trilu of unknown size": lambda: (
        graph([node("Trilu", ["x"], upper=1)], {"x": (F, [2, 6, "h", "w"])}, opset=18), 11),
    "einsum of attention": lambda: (graph([node("Einsum", ["x", "x"], equation="bhqd,bhkd->bhqk")], X), 11),
    "einsum of a matrix and a vector": lambda: (
        graph([node("Einsum", ["x", "v"], equation="abcd,d->acb")], X, {"v": np.arange(5, dtype=np.float32)}), 11),
    "average pool of 19": lambda: (
        graph([node("AveragePool", ["x"], kernel_shape=[2, 2], dilations=[1, 1])], X, opset=19), 11),
    "grid sample of 20": lambda: (
        graph([node("GridSample", ["x", "g"], mode="cubic")], X,
              {"g": RNG.uniform(-1, 1, (2, 4, 4, 2)).astype(np.float32)}, opset=20), 16),
    "scatter": lambda: (
        graph([node("ScatterElements", ["x", "i", "u"], axis=1, reduction="none")], X,
              {"i": np.zeros((2, 1, 5, 5), np.int64), "u": np.ones((2, 1, 5, 5), np.float32)}), 11),
    "power of an integer": lambda: (graph([node("Pow", ["x", "e"])], X, {"e": np.array(3)}), 11),
    "constants of numbers": lambda: (
        graph([node("Constant", [], ["c"], "c", value_floats=[1.0, 2, 3, 4, 5]), node("Add", ["x", "c"])], X), 11),
    "dropout": lambda: (graph([node("Dropout", ["x", "r"])], X, {"r": np.float32(0.3)}), 11),
    "cast": lambda: (
        graph([node("Cast", ["x"], to=TensorProto.INT32, saturate=1)], X, opset=24,
              outputs={"y": (TensorProto.INT32, None)}), 11),
    "cast like": lambda: (
        graph([node("CastLike", ["x", "t"])], X, {"t": ints(1)}, outputs={"y": (I64, None)}), 11),
    "celu": lambda: (graph([node("Celu", ["x"], alpha=0.7)], X), 11),
    "identity and friends of 25": lambda: (
        graph([node("Identity", ["x"], ["a"], "a"), node("Transpose", ["a"], ["b"], "b", perm=[0, 2, 3, 1]),
               node("Flatten", ["b"], ["c"], "c"), node("TopK", ["c", "k"], ["y", "i"], "d")], X, {"k": ints(3)},
              opset=25), 11),
    "batch normalization": lambda: (
        graph([node("BatchNormalization", ["x", "s", "b", "m", "v"], training_mode=0)], X,
              {"s": np.ones(6, np.float32), "b": np.ones(6, np.float32), "m": np.zeros(6, np.float32),
               "v": np.full(6, 2, np.float32)}), 11),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_OP)
def test_an_operator_goes_down(tmp_path: Path, name: str) -> None:
    model, lowest = ONE_OP[name]()
    before = model.SerializeToString()
    for opset in (opset for opset in (18, *LOW) if opset >= lowest):
        same(tmp_path, model, lower(model, opset), IMAGE)
    assert model.SerializeToString() == before


def test_recurrent_layers_with_the_batch_first(tmp_path: Path) -> None:
    """ONNX Runtime runs no layout 1, so the two are compared by weights that both read alike."""
    weights = {
        name: RNG.normal(size=size).astype(np.float32) for name, size in {"w": (1, 12, 4), "r": (1, 12, 3)}.items()
    }
    x = RNG.normal(size=(2, 5, 4)).astype(np.float32)
    first = graph(
        [node("LSTM", ["x", "w", "r"], ["y", "h", "c"], hidden_size=3, layout=1)], {"x": (F, [2, 5, 4])}, weights,
        outputs={"y": (F, [2, 5, 1, 3]), "h": (F, [2, 1, 3]), "c": (F, [2, 1, 3])},
    )  # fmt: skip
    plain = graph(
        [node("LSTM", ["x", "w", "r"], ["y", "h", "c"], hidden_size=3)], {"x": (F, [5, 2, 4])}, weights,
        outputs={"y": (F, None), "h": (F, None), "c": (F, None)}, opset=13,
    )  # fmt: skip
    (tmp_path / "a").write_bytes(lower(first, 13).SerializeToString())
    (tmp_path / "b").write_bytes(plain.SerializeToString())
    found = run_plain(tmp_path / "a", {"x": x})
    expected = run_plain(tmp_path / "b", {"x": np.ascontiguousarray(x.transpose(1, 0, 2))})
    np.testing.assert_allclose(found["y"], expected["y"].transpose(2, 0, 1, 3), atol=1e-6)
    for name in "hc":
        np.testing.assert_allclose(found[name], expected[name].transpose(1, 0, 2), atol=1e-6)


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], int, str]] = {
    "GatherND with batches": (
        lambda: graph([node("GatherND", ["x", "i"], name="pick", batch_dims=1)], X, {"i": np.zeros((2, 1), np.int64)}),
        11, "pick (GatherND): opset 11 has no attribute batch_dims (here 1)"),
    "greatest of integers": (
        lambda: graph([node("Max", ["x", "x"], name="top")], {"x": (I64, [3])}, outputs={"y": (I64, None)}),
        11, "top (Max): opset 11 does not take int64 for 'x'"),
    "grid sample": (
        lambda: graph([node("GridSample", ["x", "g"], name="warp")], X, {"g": np.zeros((2, 4, 4, 2), np.float32)}),
        15, "warp (GridSample): the operator does not exist at opset 15"),
    "antialias": (
        lambda: graph([node("Resize", ["x", "", "s"], name="small", antialias=1)], X,
                      {"s": np.array([1, 1, 0.5, 0.5], np.float32)}),
        16, "small (Resize): antialias came with opset 18"),
    "scatter with a sum": (
        lambda: graph([node("ScatterND", ["x", "i", "u"], name="put", reduction="add")], X,
                      {"i": np.zeros((1, 1), np.int64), "u": np.ones((1, 6, 5, 5), np.float32)}),
        15, "put (ScatterND): reduction 'add' came later"),
    "axes that are computed": (
        lambda: graph([node("ReduceMean", ["x", "a"], name="mean")], {**X, "a": (I64, [1])}),
        16, "mean (ReduceMean): its axes are computed"),
    "einsum of two summed indices": (
        lambda: graph([node("Einsum", ["x", "x"], name="sum", equation="bchw,bkhw->bck")], X),
        11, "sum (Einsum): the operator does not exist at opset 11"),
    "below 11": (lambda: graph([node("Relu", ["x"])], X), 10, "opset 10 is below 11"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_lowered_is_named(name: str) -> None:
    make, opset, text = REFUSED[name]
    with pytest.raises(GateError) as caught:
        lower(make(), opset)
    assert text in caught.value.message
    assert caught.value.exit_code == 1
    assert caught.value.details["nodes"]


def test_every_node_in_the_way_is_named_at_once_with_its_line() -> None:
    nodes = [node("GridSample", ["x", "g"], [f"y{i}"], f"warp_{i}") for i in range(7)]
    nodes[0].metadata_props.add(key="source", value="model.py:12")
    model = graph(nodes, X, {"g": np.zeros((2, 4, 4, 2), np.float32)}, outputs={"y6": (F, None)})
    with pytest.raises(GateError, match="and 2 more") as caught:
        lower(model, 13)
    rows = caught.value.details["nodes"]
    assert [row["node"] for row in rows] == [f"warp_{i}" for i in range(7)]
    assert caught.value.place == rows[0]["source"] == "model.py:12"


def test_a_switched_off_decomposition_is_named_by_the_error() -> None:
    model = load(graph([node("Gelu", ["x"], name="act")], X, opset=20))
    with pytest.raises(GateError, match="the rewrite decompose_gelu would remove it"):
        REWRITES["lower_opset"].apply(model, Context("atc", 18))


def test_inside_branches_too(tmp_path: Path) -> None:
    """New constants of a branch are nodes of that branch, and the names stay unique in the whole graph."""
    then = helper.make_graph(
        [node("LayerNormalization", ["x", "s"], ["t"], "norm"), node("Shape", ["t"], ["s0"], "shape", start=1),
         node("Cast", ["s0"], ["s1"], "cast", to=F), node("ReduceMean", ["s1"], ["s2"], "mean", keepdims=0),
         node("Mul", ["t", "s2"], ["u"], "mul")],
        "then", [], [helper.make_tensor_value_info("u", F, [2, 6, 5, 5])],
    )  # fmt: skip
    other = helper.make_graph(
        [node("HardSwish", ["x"], ["v"], "swish")], "else", [], [helper.make_tensor_value_info("v", F, [2, 6, 5, 5])]
    )
    model = graph(
        [node("ReduceSum", ["x"], ["sum"], "sum", keepdims=0), node("Greater", ["sum", "zero"], ["c"], "greater"),
         node("If", ["c"], ["y"], "if", then_branch=then, else_branch=other)],
        X, {"zero": np.float32(0), "s": np.full(5, 2, np.float32)},
    )  # fmt: skip
    done = lower(model, 11)
    names = [n.name for n in ir.traversal.RecursiveGraphIterator(ir.from_proto(done).graph)]
    assert len(set(names)) == len(names)
    assert {"norm/mean", "norm/epsilon", "swish/hard_sigmoid", "shape/slice"} <= set(names)
    assert [tensor.name for tensor in done.graph.initializer] == ["zero", "s"]
    for sign in (1, -1):
        same(tmp_path, model, done, {"x": sign * np.abs(IMAGE["x"])})


STEPS: dict[str, Callable[[str, str], list[Any]]] = {
    "mean": lambda x, y: [node("ReduceMean", [x, "channels"], [y], f"{y}_mean")],
    "norm": lambda x, y: [node("ReduceL2", [x, "last"], [f"{y}_n"], f"{y}_l2"), node("Div", [x, f"{y}_n"], [y], f"{y}_div")],
    "softmax": lambda x, y: [node("Softmax", [x], [y], f"{y}_soft", axis=1)],
    "layer": lambda x, y: [node("LayerNormalization", [x, "five"], [y], f"{y}_layer", epsilon=1e-2)],
    "swish": lambda x, y: [node("HardSwish", [x], [y], f"{y}_swish")],
    "mish": lambda x, y: [node("Mish", [x], [y], f"{y}_mish")],
    "group": lambda x, y: [node("GroupNormalization", [x, "two", "two"], [y], f"{y}_group", num_groups=2, epsilon=0.1)],
    "halves": lambda x, y: [node("Split", [x], [f"{y}_a", f"{y}_b"], f"{y}_split", axis=1, num_outputs=2),
                            node("Concat", [f"{y}_b", f"{y}_a"], [y], f"{y}_cat", axis=1)],
    "there and back": lambda x, y: [node("Shape", [x], [f"{y}_s"], f"{y}_shape", start=2),
                                    node("Concat", ["lead", f"{y}_s"], [f"{y}_t"], f"{y}_cat", axis=0),
                                    node("Reshape", [x, f"{y}_t"], [y], f"{y}_reshape", allowzero=0)],
    "extra axis": lambda x, y: [node("Unsqueeze", [x, "channels"], [f"{y}_u"], f"{y}_un"),
                                node("Squeeze", [f"{y}_u", "channels"], [y], f"{y}_sq")],
    "mask": lambda x, y: [node("Trilu", [x], [y], f"{y}_tri", upper=0)],
    "choose": lambda x, y: [node("GreaterOrEqual", [x, "half"], [f"{y}_c"], f"{y}_ge"),
                            node("Where", [f"{y}_c", x, "half"], [y], f"{y}_where")],
    "pad and cut": lambda x, y: [node("Pad", [x, "pads", "", "last"], [f"{y}_p"], f"{y}_pad"),
                                 node("Slice", [f"{y}_p", "one", "six", "last"], [y], f"{y}_slice")],
    "again": lambda x, y: [node("Add", [x, "x"], [y], f"{y}_add")],
}  # fmt: skip
WEIGHTS = {
    "channels": ints(1), "last": ints(-1), "five": np.arange(1, 6, dtype=np.float32), "two": np.array([1, 2], np.float32),
    "lead": ints(-1, 6), "half": np.float32(0.5), "pads": ints(1, 2), "one": ints(1), "six": ints(6),
}  # fmt: skip


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=7), opset=st.sampled_from(LOW))
def test_any_chain_of_operators_goes_down(tmp_path: Path, steps: list[str], opset: int) -> None:
    nodes, x = [], "x"
    for number, step in enumerate(steps):
        if step == "mean":  # keeps the shape: x minus its mean
            nodes += [
                *STEPS[step](x, f"t{number}_m"),
                node("Sub", [x, f"t{number}_m"], [f"t{number}"], f"t{number}_sub"),
            ]
        else:
            nodes += STEPS[step](x, f"t{number}")
        x = f"t{number}"
    nodes.append(node("Identity", [x], ["y"], "end"))
    model = graph(nodes, X, WEIGHTS)
    same(tmp_path, model, lower(model, opset), IMAGE, 1e-5)


class Mlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(16, 32),
            torch.nn.GELU(),
            torch.nn.LayerNorm(32),
            torch.nn.GELU("tanh"),
            torch.nn.Linear(32, 4),
        )

    def forward(self, x):
        return torch.softmax(self.layers(x), -1)


class Cnn(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.Hardswish(), torch.nn.MaxPool2d(2)
        )
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Vit(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 16, 4, 4)
        self.token = torch.nn.Parameter(torch.randn(1, 1, 16))
        self.norm, self.mix, self.head = torch.nn.LayerNorm(16), torch.nn.Linear(16, 48), torch.nn.Linear(16, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        q, k, v = self.mix(self.norm(x)).reshape(x.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x[:, 0])


class Lstm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = torch.nn.LSTM(16, 8, batch_first=True, bidirectional=True), torch.nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.rnn(x.reshape(x.shape[0], -1, 16))[0][:, -1])


class Interp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = torch.nn.GroupNorm(2, 4), torch.nn.ConvTranspose2d(4, 2, 2, 2)
        self.first = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = torch.nn.functional.interpolate(self.norm(self.first(x)), scale_factor=2, mode="bilinear")
        a, b = torch.chunk(self.up(x), 2, dim=1)
        return (a * b).flatten(2).amax(2)


class Cond(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(16, 4), torch.nn.Linear(16, 4)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda v: torch.relu(self.a(v)).clamp(0, 6), lambda v: self.b(v).tanh(), (x,))


VECTOR, PICTURE = [6, 16], [6, 3, 8, 8]
MODULES: dict[str, tuple[type[torch.nn.Module], list[int], list[Any]]] = {
    "mlp": (Mlp, VECTOR, ["batch", 4]),
    "cnn": (Cnn, PICTURE, ["batch", 4]),
    "vit": (Vit, PICTURE, ["batch", 4]),
    "lstm": (Lstm, PICTURE, ["batch", 4]),
    "interp": (Interp, PICTURE, ["batch", 1]),
    "cond": (Cond, VECTOR, ["batch", 4]),
}


@pytest.mark.parametrize("name", MODULES)
def test_what_torch_exports_goes_down_to_11(tmp_path: Path, name: str) -> None:
    kind, shape, out = MODULES[name]
    torch.manual_seed(0)
    inputs = specs({"x": {"dtype": "float32", "shape": ["batch", *shape[1:]]}})
    outputs = specs({"y": {"dtype": "float32", "shape": out}})
    example = example_inputs(inputs, batch=shape[0])
    info = export_onnx(kind().eval(), inputs=inputs, outputs=outputs, example=example, out=tmp_path)
    assert (info.opset, info.exporter) == (18, "dynamo")
    before = onnx.load(tmp_path / "model.onnx")
    for opset in LOW:
        after = lower(before, opset)
        for values in (example, example_inputs(inputs, batch=3, seed=2)):
            same(tmp_path, before, after, values)
    sources = {p.value for n in after.graph.node for p in n.metadata_props if p.key == "source"}
    assert sources
    assert all(source.startswith("test_graph_lower_opset.py:") for source in sources)
