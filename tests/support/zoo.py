"""A zoo of small graphs, each with real-looking samples, that every pass over graphs is tried on.

Axis 0 of every sample is the sample. `overflows` says whether a float tensor leaves fp16's range when all are fp16.
Weights and samples are drawn from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ZooGraph:
    model: onnx.ModelProto
    samples: dict[str, Array]
    overflows: bool


class Sketch:
    """A graph in the making. Node names are unique: those given, or the operator's name with a number."""

    def __init__(self, seed: int = 0, opset: int = 18, prefix: str = "") -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.prefix = prefix
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def input(self, name: str, shape: Sequence[Any], dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(self.prefix + name, dtype, shape))
        return self.prefix + name

    def output(self, name: str, shape: Sequence[Any] | None, dtype: int = TensorProto.FLOAT) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def weight(self, value: Any, name: str = "", dtype: Any = np.float32) -> str:
        name = name or f"{self.prefix}w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.weight(list(values), dtype=np.int64)

    def random(self, *shape: int, scale: float | None = None) -> str:
        scale = (
            scale if scale is not None else 1 / np.sqrt(np.prod(shape[:-1]) if len(shape) < 4 else np.prod(shape[1:]))
        )
        return self.weight(self.rng.normal(size=shape) * scale)

    def op(self, kind: str, *inputs: str, name: str = "", out: str | Sequence[str] = "", **attributes: Any) -> Any:
        label = name or f"{self.prefix}{kind.lower()}_{len(self.nodes)}"
        outs = [out or f"{label}/out"] if isinstance(out, str) else list(out)
        self.nodes.append(helper.make_node(kind, list(inputs), outs, name=label, **attributes))
        return outs[0] if len(outs) == 1 else outs

    def graph(self, name: str = "zoo") -> Any:
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.weights)

    def model(self) -> onnx.ModelProto:
        model = helper.make_model(self.graph(), opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def _normal(*shape: int, seed: int = 1, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def mlp() -> ZooGraph:
    s = Sketch(1)
    x = s.input("x", ["N", 16])
    h = s.op("Relu", s.op("Gemm", x, s.random(16, 32), s.random(32)))
    h = s.op("Tanh", s.op("Gemm", h, s.random(24, 32), s.random(24), transB=1))
    s.op("Softmax", s.op("Gemm", h, s.random(24, 10), s.random(10)), out="y", axis=-1)
    s.output("y", ["N", 10])
    return ZooGraph(s.model(), {"x": _normal(8, 16)}, overflows=False)


def cnn_bn() -> ZooGraph:
    s = Sketch(2)
    x = s.input("image", ["N", 3, 12, 12])
    h = s.op("Conv", x, s.random(8, 3, 3, 3), s.random(8), pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    statistics = [s.weight(s.rng.uniform(0.5, 1.5, 8)), s.random(8), s.random(8), s.weight(s.rng.uniform(0.5, 2, 8))]
    h = s.op("Relu", s.op("BatchNormalization", h, *statistics))
    h = s.op("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    h = s.op("Conv", h, s.random(8, 1, 3, 3), group=8, pads=[1, 1, 1, 1], strides=[2, 2], kernel_shape=[3, 3])
    h = s.op("Clip", h, s.weight(0.0), s.weight(6.0))
    h = s.op("AveragePool", h, kernel_shape=[2, 2], strides=[1, 1])
    h = s.op("Flatten", s.op("GlobalAveragePool", h))
    s.op("Gemm", h, s.random(8, 5), s.random(5), out="logits")
    s.output("logits", ["N", 5])
    return ZooGraph(s.model(), {"image": _normal(6, 3, 12, 12)}, overflows=False)


def residual() -> ZooGraph:
    s = Sketch(3)
    x = s.input("image", ["N", 4, 8, 8])
    h = x
    for _ in range(3):
        a = s.op("LeakyRelu", s.op("Conv", h, s.random(4, 4, 3, 3), s.random(4), pads=[1, 1, 1, 1]), alpha=0.1)
        a = s.op("Conv", a, s.random(4, 4, 1, 1), s.random(4))
        gate = s.op("Sigmoid", s.op("GlobalAveragePool", a))
        h = s.op("Add", h, s.op("Mul", a, gate))
    s.op("ReduceMean", h, s.ints(2, 3), out="y", keepdims=0)
    s.output("y", ["N", 4])
    return ZooGraph(s.model(), {"image": _normal(6, 4, 8, 8)}, overflows=False)


def _recurrent(kind: str, gates: int, **attributes: Any) -> ZooGraph:
    s = Sketch(4, opset=17)
    x = s.input("x", ["N", 7, 5])
    size, ways = 6, 2
    seq = s.op("Transpose", x, perm=[1, 0, 2])
    weights = [
        s.random(ways, gates * size, 5, scale=0.4),
        s.random(ways, gates * size, size, scale=0.4),
        s.random(ways, 2 * gates * size, scale=0.2),
    ]
    outs = [f"{kind.lower()}/y", f"{kind.lower()}/h"] + ([f"{kind.lower()}/c"] if kind == "LSTM" else [])
    s.op(kind, seq, *weights, out=outs, name=kind.lower(), hidden_size=size, direction="bidirectional", **attributes)
    h = s.op("Reshape", s.op("Transpose", outs[1], perm=[1, 0, 2]), s.ints(0, ways * size))
    s.op("Gemm", h, s.random(ways * size, 4), s.random(4), out="y")
    s.output("y", ["N", 4])
    s.op("Transpose", s.op("ReduceMean", outs[0], axes=[1], keepdims=0), out="steps", perm=[1, 0, 2])
    s.output("steps", ["N", 7, size])
    return ZooGraph(s.model(), {"x": _normal(4, 7, 5)}, overflows=False)


def lstm() -> ZooGraph:
    return _recurrent("LSTM", 4)


def gru() -> ZooGraph:
    return _recurrent("GRU", 3, linear_before_reset=1)


def _attend(s: Sketch, x: str, mask: str = "") -> str:
    parts = []
    for part in "qkv":
        h = s.op("Add", s.op("MatMul", x, s.random(16, 16), name=f"{part}/matmul"), s.random(16), name=f"{part}/bias")
        h = s.op("Reshape", h, s.ints(0, 0, 2, 8), name=f"{part}/heads")
        parts.append(s.op("Transpose", h, perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3], name=f"{part}/turn"))
    q, k, v = parts
    scores = s.op("Mul", s.op("MatMul", q, k), s.weight(1 / np.sqrt(8)))
    if mask:
        scores = s.op("Add", scores, mask, name="masked")
    h = s.op("MatMul", s.op("Softmax", scores, axis=-1), v)
    return s.op("Reshape", s.op("Transpose", h, perm=[0, 2, 1, 3]), s.ints(0, 0, 16))


def attention() -> ZooGraph:
    s = Sketch(5)
    x = s.input("x", ["N", 6, 16])
    h = s.op("Add", x, s.op("MatMul", _attend(s, x), s.random(16, 16)))
    s.op("LayerNormalization", h, s.weight(np.ones(16)), s.random(16), out="y", axis=-1, epsilon=1e-5)
    s.output("y", ["N", 6, 16])
    return ZooGraph(s.model(), {"x": _normal(4, 6, 16)}, overflows=False)


def attention_masked() -> ZooGraph:
    """The usual mask of -1e9: out of fp16's range, and harmless as long as no row is masked whole."""
    s = Sketch(6)
    x = s.input("x", ["N", 6, 16])
    mask = s.input("mask", ["N", 6], TensorProto.INT64)
    wide = s.op("Unsqueeze", s.op("Cast", mask, to=TensorProto.FLOAT), s.ints(1, 2))
    bias = s.op("Mul", s.op("Sub", s.weight(1.0), wide), s.weight(-1e9), name="mask/scale")
    s.op("Identity", _attend(s, x, bias), out="y")
    s.output("y", ["N", 6, 16])
    mask_value = np.ones((4, 6), np.int64)
    mask_value[1:, 4:] = 0
    return ZooGraph(s.model(), {"x": _normal(4, 6, 16), "mask": mask_value}, overflows=True)


def embedding() -> ZooGraph:
    s = Sketch(7)
    ids = s.input("ids", ["N", 9], TensorProto.INT64)
    h = s.op("Gather", s.random(50, 12, scale=0.5), ids)
    h = s.op("ReduceMean", h, s.ints(1), keepdims=0)
    norm = s.op("ReduceL2", h, s.ints(1), keepdims=1)
    s.op("Div", h, s.op("Clip", norm, s.weight(1e-6)), out="y")
    s.output("y", ["N", 12])
    return ZooGraph(s.model(), {"ids": np.random.default_rng(8).integers(0, 50, (5, 9))}, overflows=False)


def if_branch() -> ZooGraph:
    """Branches read tensors of the graph around them: one computed, one a weight."""
    s = Sketch(9)
    x = s.input("x", ["N", 8])
    h = s.op("MatMul", x, s.random(8, 8), name="before")
    shared = s.random(8, 8)
    total = s.op("ReduceSum", x, keepdims=0)
    condition = s.op("Greater", total, s.weight(0.0))
    branches = {}
    for branch, kind in (("then_branch", "Tanh"), ("else_branch", "Exp")):
        inner = Sketch(10, prefix=f"{branch}/")
        inner.op("Add", inner.op(kind, inner.op("MatMul", h, shared)), x, out=f"{branch}/y")
        inner.output(f"{branch}/y", ["N", 8])
        branches[branch] = inner.graph(branch)
    chosen = s.op("If", condition, name="if", **branches)
    s.op("Gemm", chosen, s.random(8, 3), s.random(3), out="y")
    s.output("y", ["N", 3])
    return ZooGraph(s.model(), {"x": np.abs(_normal(4, 8))}, overflows=False)


def loop() -> ZooGraph:
    """A state that goes round, a weight and a computed tensor from outside, and a stacked output."""
    s = Sketch(11)
    x = s.input("x", ["N", 6])
    drive = s.op("MatMul", x, s.random(6, 6), name="drive")
    weight = s.random(6, 6, scale=0.5)
    body = Sketch(12, prefix="body/")
    body.input("i", [], TensorProto.INT64)
    going = body.input("going", [], TensorProto.BOOL)
    state = body.input("state", ["N", 6])
    body.op("Identity", going, out="body/going_out")
    mixed = body.op("Add", body.op("MatMul", state, weight), drive)
    body.op("Tanh", mixed, out="body/state_out")
    body.op("Mul", "body/state_out", body.weight(0.3), out="body/scan")
    body.output("body/going_out", [], TensorProto.BOOL)
    body.output("body/state_out", ["N", 6])
    body.output("body/scan", ["N", 6])
    trips, true = s.weight(5, dtype=np.int64), s.weight(np.array(1), dtype=np.bool_)
    last, stacked = s.op("Loop", trips, true, x, name="loop", out=["last", "stacked"], body=body.graph("body"))
    s.op("Transpose", stacked, out="steps", perm=[1, 0, 2])
    s.op("Mul", last, s.weight(2.0), out="y")
    s.output("y", ["N", 6])
    s.output("steps", ["N", 5, 6])
    return ZooGraph(s.model(), {"x": _normal(4, 6)}, overflows=False)


def loop_growing() -> ZooGraph:
    """A state that grows by half each time round: it leaves fp16's range only inside the loop, in its last rounds."""
    s = Sketch(13)
    x = s.input("x", ["N", 4])
    body = Sketch(14, prefix="body/")
    body.input("i", [], TensorProto.INT64)
    going = body.input("going", [], TensorProto.BOOL)
    state = body.input("state", ["N", 4])
    body.op("Identity", going, out="body/going_out")
    body.op("Mul", state, body.weight(8.0), out="body/state_out")
    body.output("body/going_out", [], TensorProto.BOOL)
    body.output("body/state_out", ["N", 4])
    trips, true = s.weight(6, dtype=np.int64), s.weight(np.array(1), dtype=np.bool_)
    last = s.op("Loop", trips, true, x, name="loop", body=body.graph("body"))
    s.op("Mul", last, s.weight(1e-5), out="y")
    s.output("y", ["N", 4])
    return ZooGraph(s.model(), {"x": 1 + np.abs(_normal(3, 4))}, overflows=True)


def scan() -> ZooGraph:
    s = Sketch(15)
    x = s.input("x", ["N", 5, 4])
    seq = s.op("Transpose", x, perm=[1, 0, 2])
    start = s.op("Mul", s.op("Squeeze", s.op("Slice", seq, s.ints(0), s.ints(1), s.ints(0)), s.ints(0)), s.weight(0.5))
    weight = s.random(4, 4)
    body = Sketch(16, prefix="body/")
    state, item = body.input("state", ["N", 4]), body.input("item", ["N", 4])
    body.op("Sigmoid", body.op("Add", body.op("MatMul", state, weight), item), out="body/state_out")
    body.op("Sub", "body/state_out", item, out="body/each")
    body.output("body/state_out", ["N", 4])
    body.output("body/each", ["N", 4])
    last, each = s.op("Scan", start, seq, name="scan", out=["last", "each"], body=body.graph("body"), num_scan_inputs=1)
    s.op("Transpose", each, out="steps", perm=[1, 0, 2])
    s.op("Exp", last, out="y")
    s.output("y", ["N", 4])
    s.output("steps", ["N", 5, 4])
    return ZooGraph(s.model(), {"x": _normal(4, 5, 4)}, overflows=False)


def nested() -> ZooGraph:
    """An If inside a Loop; its branches read the loop's state, the graph's weight and the graph's tensor."""
    s = Sketch(17)
    x = s.input("x", ["N", 4])
    outer = s.op("Sigmoid", x, name="outer")
    weight = s.random(4, 4)
    body = Sketch(18, prefix="body/")
    turn = body.input("i", [], TensorProto.INT64)
    going = body.input("going", [], TensorProto.BOOL)
    state = body.input("state", ["N", 4])
    body.op("Identity", going, out="body/going_out")
    even = body.op("Equal", body.op("Mod", turn, body.weight(2, dtype=np.int64)), body.weight(0, dtype=np.int64))
    branches = {}
    for branch, kind in (("then_branch", "Add"), ("else_branch", "Sub")):
        inner = Sketch(19, prefix=f"{branch}/")
        inner.op(kind, inner.op("MatMul", state, weight), outer, out=f"{branch}/y")
        inner.output(f"{branch}/y", ["N", 4])
        branches[branch] = inner.graph(branch)
    body.op("If", even, name="body/if", out="body/state_out", **branches)
    body.output("body/going_out", [], TensorProto.BOOL)
    body.output("body/state_out", ["N", 4])
    trips, true = s.weight(4, dtype=np.int64), s.weight(np.array(1), dtype=np.bool_)
    s.op("Loop", trips, true, x, name="loop", out="y", body=body.graph("body"))
    s.output("y", ["N", 4])
    return ZooGraph(s.model(), {"x": _normal(4, 4)}, overflows=False)


def resize() -> ZooGraph:
    s = Sketch(20)
    x = s.input("image", ["N", 3, 6, 6])
    h = s.op("Relu", s.op("Conv", x, s.random(4, 3, 3, 3), s.random(4), pads=[1, 1, 1, 1]))
    up = s.op("Resize", h, "", s.weight([1, 1, 2, 2]), mode="linear", coordinate_transformation_mode="half_pixel")
    near = s.op(
        "Resize", h, "", s.weight([1, 1, 2, 2]),
        mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
    s.op("Conv", s.op("Concat", up, near, axis=1), s.random(2, 8, 1, 1), s.random(2), out="y")
    s.output("y", ["N", 2, 12, 12])
    return ZooGraph(s.model(), {"image": _normal(4, 3, 6, 6)}, overflows=False)


def reductions_65504() -> ZooGraph:
    """A mean of values near 3e4: fine, unless its sum is kept in fp16; and a sum that ends just inside the range."""
    s = Sketch(21)
    x = s.input("x", ["N", 4, 32])
    mean = s.op("ReduceMean", x, s.ints(-1), keepdims=1, name="mean")
    s.op("Mul", s.op("Sub", x, mean), s.weight(1e-3), out="centred")
    part = s.op("Mul", x, s.weight(0.06), name="part")
    s.op("ReduceSum", part, s.ints(-1), keepdims=0, name="sum", out="total")
    s.output("centred", ["N", 4, 32])
    s.output("total", ["N", 4])
    x_value = (3e4 + _normal(4, 4, 32, scale=300)).astype(np.float32)
    return ZooGraph(s.model(), {"x": x_value}, overflows=False)


def sum_overflows() -> ZooGraph:
    s = Sketch(22)
    x = s.input("x", ["N", 48])
    total = s.op("ReduceSum", s.op("Mul", x, x, name="square"), s.ints(-1), keepdims=1, name="sum")
    s.op("Div", x, s.op("Sqrt", total), out="y")
    s.output("y", ["N", 48])
    return ZooGraph(s.model(), {"x": _normal(4, 48, scale=60)}, overflows=True)


def _rms_norm(s: Sketch, x: str, label: str, size: int) -> str:
    square = s.op("Mul", x, x, name=f"{label}/square")
    mean = s.op("ReduceMean", square, s.ints(-1), keepdims=1, name=f"{label}/mean")
    root = s.op("Sqrt", s.op("Add", mean, s.weight(1e-6), name=f"{label}/eps"), name=f"{label}/root")
    gain = s.weight(s.rng.uniform(0.5, 1.5, size))
    return s.op("Mul", s.op("Div", x, root, name=f"{label}/div"), gain, name=f"{label}/gain")


def rmsnorm_massive() -> ZooGraph:
    """Eight blocks around a residual with one channel near 700, whose square leaves fp16's range in every norm."""
    s = Sketch(23)
    size = 48
    x = s.input("x", ["N", 6, size])
    bias = np.zeros(size)
    bias[7], bias[31] = 700.0, -350.0
    h = s.op("MatMul", x, s.random(size, size), name="embed/matmul")
    h = s.op("Add", h, s.weight(bias), name="embed/massive")
    for block in range(8):
        label = f"block{block}"
        a = _rms_norm(s, h, f"{label}/norm", size)
        a = s.op("MatMul", a, s.random(size, 2 * size, scale=0.6), name=f"{label}/up")
        a = s.op("Mul", a, s.op("Sigmoid", a, name=f"{label}/sigmoid"), name=f"{label}/silu")
        a = s.op("MatMul", a, s.random(2 * size, size, scale=0.3), name=f"{label}/down")
        h = s.op("Add", h, a, name=f"{label}/add")
    h = _rms_norm(s, h, "final", size)
    s.op("MatMul", h, s.random(size, 12), name="head", out="logits")
    s.output("logits", ["N", 6, 12])
    return ZooGraph(s.model(), {"x": _normal(4, 6, size)}, overflows=True)


def layernorm() -> ZooGraph:
    """LayerNormalization as one node and as torch writes it at older opsets."""
    s = Sketch(24, opset=17)
    x = s.input("x", ["N", 5, 24])
    one = s.op("LayerNormalization", x, s.random(24, scale=0.5), s.random(24), axis=-1, epsilon=1e-6, name="fused")
    mean = s.op("ReduceMean", one, axes=[-1], keepdims=1)
    centred = s.op("Sub", one, mean)
    variance = s.op("ReduceMean", s.op("Pow", centred, s.weight(2.0)), axes=[-1], keepdims=1)
    deviation = s.op("Sqrt", s.op("Add", variance, s.weight(1e-5)))
    s.op("Mul", s.op("Div", centred, deviation), s.random(24, scale=0.5), out="y")
    s.output("y", ["N", 5, 24])
    return ZooGraph(s.model(), {"x": _normal(4, 5, 24, scale=3)}, overflows=False)


def hardswish() -> ZooGraph:
    s = Sketch(25)
    x = s.input("image", ["N", 4, 6, 6])
    h = s.op("HardSwish", s.op("Conv", x, s.random(6, 4, 3, 3), s.random(6), pads=[1, 1, 1, 1]))
    gate = s.op("HardSigmoid", s.op("GlobalAveragePool", h), alpha=1 / 6, beta=0.5)
    s.op("HardSwish", s.op("Mul", h, gate), out="y")
    s.output("y", ["N", 6, 6, 6])
    return ZooGraph(s.model(), {"image": _normal(4, 4, 6, 6, scale=2)}, overflows=False)


def groupnorm() -> ZooGraph:
    """GroupNorm as torch writes it below opset 21: InstanceNormalization between two Reshapes."""
    s = Sketch(26)
    x = s.input("image", ["N", 8, 5, 5])
    h = s.op("Conv", x, s.random(8, 8, 1, 1), s.random(8))
    h = s.op("Reshape", h, s.ints(0, 2, -1))
    h = s.op("InstanceNormalization", h, s.weight(np.ones(2)), s.weight(np.zeros(2)), epsilon=1e-5)
    h = s.op("Reshape", h, s.ints(0, 8, 5, 5))
    h = s.op("Add", s.op("Mul", h, s.random(8, 1, 1, scale=1)), s.random(8, 1, 1, scale=1))
    s.op("Elu", h, out="y")
    s.output("y", ["N", 8, 5, 5])
    return ZooGraph(s.model(), {"image": _normal(4, 8, 5, 5)}, overflows=False)


def gelu() -> ZooGraph:
    s = Sketch(27)
    x = s.input("x", ["N", 20])
    h = s.op("MatMul", x, s.random(20, 20))
    h = s.op("Mul", h, s.op("Add", s.op("Erf", s.op("Div", h, s.weight(np.sqrt(2)))), s.weight(1.0)))
    s.op("Mul", h, s.weight(0.5), out="y")
    s.output("y", ["N", 20])
    return ZooGraph(s.model(), {"x": _normal(6, 20)}, overflows=False)


def movement() -> ZooGraph:
    """Mostly moving of data: nothing may be rounded twice, integers not at all."""
    s = Sketch(28)
    x = s.input("x", ["N", 6, 4])
    left, right = s.op("Split", x, out=["left", "right"], axis=1, num_outputs=2)
    pad = s.op("Pad", s.op("Mul", left, s.weight(0.7)), s.ints(0, 1, 0, 0, 1, 0), s.weight(0.1))
    h = s.op("Concat", pad, s.op("Neg", right), axis=1)
    best = s.op("ArgMax", h, axis=2, keepdims=1, out="best")
    s.output("best", ["N", 8, 1], TensorProto.INT64)
    picked = s.op("GatherElements", h, best, axis=2)
    wide = s.op("Expand", picked, s.ints(1, 1, 4))
    s.op("Where", s.op("Less", h, wide), h, s.op("Max", wide, s.weight(0.2)), out="y")
    s.output("y", ["N", 8, 4])
    return ZooGraph(s.model(), {"x": _normal(5, 6, 4)}, overflows=False)


def overflow_trap() -> ZooGraph:
    """Finite in fp32, infinite in fp16, finite again when a runtime computes fp16 graphs in fp32."""
    s = Sketch(29)
    h = s.input("x", ["N", 4])
    factor = s.weight(300.0)
    for kind in ("Mul", "Mul", "Div"):
        h = s.op(kind, h, factor)
    s.op("Div", h, factor, out="y")
    s.output("y", ["N", 4])
    return ZooGraph(s.model(), {"x": np.array([[1, 2, 3, 0.5], [1, 0.7, 0.1, 4]], np.float32)}, overflows=True)


def epsilon_lost() -> ZooGraph:
    """An epsilon below fp16's smallest value: the division by it yields infinity, or what hides it."""
    s = Sketch(30)
    x = s.input("x", ["N", 6])
    size = s.op("ReduceSum", s.op("Abs", s.op("Relu", x)), s.ints(-1), keepdims=1)
    s.op("Div", x, s.op("Add", size, s.weight(1e-9)), out="y")
    s.output("y", ["N", 6])
    x_value = np.abs(_normal(4, 6))
    x_value[2] *= -1e-9
    return ZooGraph(s.model(), {"x": x_value}, overflows=True)


ZOO: dict[str, Callable[[], ZooGraph]] = {
    make.__name__: make
    for make in (
        mlp, cnn_bn, residual, lstm, gru, attention, attention_masked, embedding, if_branch, loop, loop_growing, scan,
        nested, resize, reductions_65504, sum_overflows, rmsnorm_massive, layernorm, hardswish, groupnorm, gelu,
        movement, overflow_trap, epsilon_lost,
    )
}  # fmt: skip
