"""The twin against an interpreter that shares no code with it, and its rounding against numpy's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.fp16_interpreter import Interpreter
from support.zoo import ZOO, Sketch, ZooGraph

from orchestrator.ascend.precision import Policy, policy
from orchestrator.core.errors import GateError, PlanError
from orchestrator.graph.twin.edges import plan_edges
from orchestrator.graph.twin.emulate import METADATA_KEY, emulate
from orchestrator.graph.twin.rounding import round_nodes, round_weight, session_options

LEVELS = [
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
]
MODES = [
    ("Ascend310P3", "fp16", "fp32"),
    ("Ascend310P3", "fp16", "fp16"),
    ("Ascend310P3", "mixed_float16", "fp32"),
    ("Ascend310P3", "cube_fp16in_fp32out", "fp32"),
    ("Ascend310P3", "allow_fp32_to_fp16", "fp32"),
    ("Ascend310P3", "origin", "fp32"),
    ("Ascend910B4", "fp16", "fp32"),
    ("Ascend910B4", "fp16", "fp16"),
    ("Ascend910B4", "mixed_float16", "fp32"),
    ("Ascend910B4", "mixed_bfloat16", "fp32"),
    ("Ascend910B4", "bf16", "fp32"),
    ("Ascend910B4", "cube_fp16in_fp32out", "fp32"),
    ("Ascend310B1", "mixed_bfloat16", "fp32"),
    ("Ascend910A", "mixed_float16", "fp32"),
    (None, "fp16", "fp32"),
]
EQUAL_DB = 90.0
"""Where both come out above this, only the order of fp32 sums is left."""


def run(model: onnx.ModelProto, samples: dict[str, Any], level: Any = LEVELS[-1], outputs: Any = None) -> list[Any]:
    options = session_options(1)
    options.graph_optimization_level = level
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, samples)


def sqnr(reference: Any, found: Any) -> float:
    """Of the elements that are finite, in dB."""
    finite = np.isfinite(found)
    a, b = reference[finite].astype(np.float64), found[finite].astype(np.float64)
    noise = float(((a - b) ** 2).sum())
    power = float((a**2).sum())
    return math.inf if noise == 0 else -math.inf if power == 0 else 10 * math.log10(power / noise)


def reaches_the_end(twin: onnx.ModelProto, plan: Policy, samples: dict[str, Any]) -> bool:
    """Tell whether a rounded tensor of the main graph is at the end of the range or beyond it."""
    most = 65504.0 if plan.low == "fp16" else 3.3895313892515355e38
    marked = onnx.ModelProto()
    marked.CopyFrom(twin)
    rounded = [node.output[0] for node in twin.graph.node if node.name.endswith("/round/up")]
    raw = [node.input[0] for node in twin.graph.node if node.name.endswith("/round/isnan")]
    carried = [
        name
        for node in twin.graph.node
        if node.op_type in {"If", "Loop", "Scan"} and _rounds_inside(node)
        for name in node.output
        if name in {wire.name for wire in plan_edges(twin, policy(None, "fp32")).wires.values()}
    ]
    names = list(dict.fromkeys([*rounded, *carried, *raw]))
    weights = [numpy_helper.to_array(item) for item in twin.graph.initializer if item.data_type == TensorProto.FLOAT]
    del marked.graph.output[:]
    marked.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    found = dict(zip(names, run(marked, samples), strict=True)) if names else {}
    low = any(not bool(np.all(np.abs(found[name]) < most)) for name in [*rounded, *carried])
    hidden = any(bool(np.isnan(found[name]).any()) for name in raw)
    clipped = bool(names) and any(bool(np.any(np.abs(item) == most)) for item in weights)
    return low or hidden or clipped


def _rounds_inside(node: Any) -> bool:
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return any(inner.name.endswith("/round/up") or _rounds_inside(inner) for graph in graphs for inner in graph.node)


@pytest.fixture(scope="module")
def zoo() -> dict[str, tuple[ZooGraph, list[Any]]]:
    graphs = {name: make() for name, make in ZOO.items()}
    return {name: (graph, run(graph.model, graph.samples)) for name, graph in graphs.items()}


@pytest.mark.parametrize(("soc", "mode", "sums"), MODES)
def test_agrees_with_the_interpreter(zoo: dict[str, Any], soc: str | None, mode: str, sums: Any) -> None:
    plan = policy(soc, mode, accumulate=sums)
    for name, (graph, reference) in zoo.items():
        twin = emulate(graph.model, plan)
        onnx.checker.check_model(twin, full_check=True)
        interpreter = Interpreter(plan)
        expected = interpreter.run(graph.model, graph.samples)
        found = run(twin, graph.samples)
        for before, theirs, ours in zip(reference, expected, found, strict=True):
            assert ours.shape == theirs.shape, name
            assert ours.dtype == theirs.dtype, name
            if ours.dtype != np.float32:
                assert np.array_equal(ours, theirs), name
                continue
            assert np.array_equal(np.isnan(ours), np.isnan(theirs)), name
            assert np.array_equal(np.isposinf(ours), np.isposinf(theirs)), name
            assert np.array_equal(np.isneginf(ours), np.isneginf(theirs)), name
            one, other = sqnr(before, ours), sqnr(before, theirs)
            assert one == other or min(one, other) > EQUAL_DB or abs(one - other) <= 0.2, (name, one, other)
        assert reaches_the_end(twin, plan, graph.samples) == interpreter.overflowed, name
        if mode == "fp16" and sums == "fp32":
            assert interpreter.overflowed == graph.overflows, name


@pytest.mark.parametrize(("soc", "mode"), [("Ascend310P3", "fp16"), ("Ascend910B4", "fp16"), ("Ascend910B4", "bf16")])
def test_same_numbers_at_every_optimisation_level(zoo: dict[str, Any], soc: str, mode: str) -> None:
    for name, (graph, _) in zoo.items():
        twin = emulate(graph.model, policy(soc, mode))
        first, *others = (run(twin, graph.samples, level) for level in LEVELS)
        for other in others:
            for one, two in zip(first, other, strict=True):
                assert np.array_equal(one, two, equal_nan=one.dtype == np.float32), name


def _pair(fmt: Any, saturating: bool) -> onnx.ModelProto:
    nodes = round_nodes("x", "y", fmt, saturating=saturating, prefix="r")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xy"]
    graph = helper.make_graph(nodes, "pair", infos[:1], infos[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


HARD = np.array(
    [
        0.0, -0.0, 65504.0, 65519.9, 65519.996, 65520.0, -65520.0, 1e9, 2.9e-8, 2.98e-8, 2.9802322e-8, 3e-8, 5.96e-8, 6.1e-5,
        6.097e-5, -8.9e-8, 1e-45, 1.0004883, 1.00048828125, 1.0014648, 2049.0, 2051.0, np.inf, -np.inf, np.nan, 3.4e38,
    ],
    np.float32,
)  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
def test_rounding_is_numpys_to_the_bit(level: Any) -> None:
    many = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / np.float32(2)
    x = np.concatenate([HARD, many, halves, ties])
    with np.errstate(all="ignore"):
        expected = x.astype(np.float16).astype(np.float32)
    (found,) = run(_pair("fp16", False), {"x": x}, level)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found[~np.isnan(x)]), np.signbit(x[~np.isnan(x)]))
    (found,) = run(_pair("fp16", True), {"x": x}, level)
    expected = np.where(np.isnan(x), 0, np.clip(expected, -65504, 65504))
    assert np.array_equal(found, expected)
    plain = x[np.isfinite(x)]
    bits = plain.view(np.uint32).astype(np.uint64)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    (found,) = run(_pair("bf16", False), {"x": plain}, level)
    assert np.array_equal(found, expected)


def test_the_ends_of_the_range() -> None:
    x = np.array([65519.9, 65520.0, -1e9, 2.9e-8, np.nan], np.float32)
    assert run(_pair("fp16", False), {"x": x})[0][:4].tolist() == [65504.0, math.inf, -math.inf, 0.0]
    assert run(_pair("fp16", True), {"x": x})[0].tolist() == [65504.0, 65504.0, -65504.0, 0.0, 0.0]


def test_pairs_are_not_dropped_by_the_runtime(zoo: dict[str, Any], tmp_path: Any) -> None:
    graph, _ = zoo["overflow_trap"]
    twin = emulate(graph.model, policy("Ascend910B4", "fp16"))
    for level in LEVELS:
        options = session_options(1)
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        ort.InferenceSession(twin.SerializeToString(), options, providers=["CPUExecutionProvider"])
        left = onnx.load(tmp_path / "optimised.onnx")
        assert sum(node.op_type == "Cast" for node in left.graph.node) == 10


def test_fp16_graphs_on_the_cpu_hide_overflow_and_the_twin_does_not() -> None:
    """The trap: ONNX Runtime computes an fp16 graph on a CPU in fp32 and drops the casts between nodes."""
    trap = ZOO["overflow_trap"]()
    half = onnx.ModelProto()
    half.CopyFrom(trap.model)
    for value in [*half.graph.input, *half.graph.output]:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in half.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for level in LEVELS:
        (hidden,) = run(half, {"x": trap.samples["x"].astype(np.float16)}, level)
        assert np.isfinite(hidden).all()
    (told,) = run(emulate(trap.model, policy("Ascend910B4", "fp16")), trap.samples)
    assert np.isinf(told[0, :3]).all()
    saturated = policy("Ascend310P3", "fp16")
    (hidden,) = run(emulate(trap.model, saturated), trap.samples)
    assert np.isfinite(hidden).all()
    assert reaches_the_end(emulate(trap.model, saturated), saturated, trap.samples)
    with pytest.raises(GateError, match="16-bit floats"):
        emulate(half, saturated)


def test_kept_nodes_read_each_other_raw() -> None:
    trap = ZOO["overflow_trap"]()
    names = [node.name for node in trap.model.graph.node]
    plan = policy("Ascend910B4", "fp16")
    reference = run(trap.model, trap.samples)[0]
    kept = run(emulate(trap.model, plan, keep=names[1:3]), trap.samples)[0]
    assert sqnr(reference, kept) > 60
    expected = Interpreter(plan, keep=frozenset(names[1:3])).run(trap.model, trap.samples)[0]
    assert np.array_equal(kept, expected)
    alone = run(emulate(trap.model, plan, keep=names[1:2]), trap.samples)[0]
    assert np.isinf(alone).any()  # its reader still reads in fp16
    everything = run(emulate(trap.model, plan, keep=names), trap.samples)[0]
    assert np.array_equal(everything, reference)


def test_keeping_what_overflows_restores_the_massive_net(zoo: dict[str, Any]) -> None:
    graph, (reference,) = zoo["rmsnorm_massive"]
    plan = policy("Ascend910B4", "fp16")
    keep = [node.name for node in graph.model.graph.node if node.name.endswith(("/square", "/mean"))]
    found = run(emulate(graph.model, plan, keep=keep), graph.samples)[0]
    assert sqnr(reference, run(emulate(graph.model, plan), graph.samples)[0]) < 10
    assert sqnr(reference, found) >= 55
    expected = Interpreter(plan, keep=frozenset(keep)).run(graph.model, graph.samples)[0]
    assert abs(sqnr(reference, expected) - sqnr(reference, found)) <= 0.2


def test_nothing_is_rounded_twice_behind_movement() -> None:
    edges = plan_edges(ZOO["movement"]().model, policy("Ascend910B4", "fp16"))
    rounded = {wire.name for wire in edges.wires.values() if wire.rounds and wire.kind != "weight"}
    assert rounded == {"x", "mul_1/out"}
    kept = plan_edges(ZOO["movement"]().model, policy("Ascend910B4", "fp16"), keep=["concat_4"])
    assert {wire.name for wire in kept.wires.values() if wire.rounds and wire.kind != "weight"} == rounded


def test_movement_of_raw_values_is_rounded_behind() -> None:
    s = Sketch()
    x = s.input("x", ["N", 4])
    turned = s.op("Transpose", s.op("Exp", x, name="exp"), perm=[1, 0], name="turn")
    s.op("Mul", turned, s.weight(3.0), out="y")
    s.output("y", [4, "N"])
    edges = plan_edges(s.model(), policy("Ascend910B4", "fp16"), keep=["exp", "turn"])
    assert edges.wires["", "turn/out"].rounds
    assert not edges.wires["", "exp/out"].rounds


@pytest.mark.parametrize("name", ["if_branch", "loop", "scan", "nested"])
def test_subgraphs_hold_casts_of_their_own(name: str) -> None:
    twin = emulate(ZOO[name]().model, policy("Ascend910B4", "fp16"))
    inner = [
        node.op_type
        for outer in twin.graph.node
        for attribute in outer.attribute
        if attribute.HasField("g")
        for node in attribute.g.node
    ]
    assert "Cast" in inner or name == "nested"


def test_weights_are_rounded_once_and_clipped() -> None:
    x = np.array([1e9, -np.inf, 1.0005, 1e-9], np.float32)
    assert round_weight(x, "fp16", saturating=False).tolist() == [65504.0, -65504.0, 1.0009765625, 0.0]
    masked = ZOO["attention_masked"]()
    twin = emulate(masked.model, policy("Ascend910B4", "fp16"))
    assert np.isfinite(run(twin, masked.samples)[0]).all()
    assert len(twin.graph.initializer) == len(masked.model.graph.initializer)
    before = sum(node.op_type == "Cast" for node in masked.model.graph.node)
    pairs = sum(node.name.endswith("/round/up") for node in twin.graph.node)
    assert sum(node.op_type == "Cast" for node in twin.graph.node) == before + 2 * pairs


def test_a_constant_node_is_a_weight() -> None:
    s = Sketch()
    x = s.input("x", ["N"])
    factor = s.op("Constant", value_float=1e-9, name="tiny")
    wide = s.op("Mul", x, factor, name="wide")
    s.op("Add", s.op("Mul", x, factor, name="narrow"), wide, out="y")
    s.output("y", ["N"])
    model, samples = s.model(), {"x": np.array([1e6], np.float32)}
    plan = policy(None, "fp16")
    assert run(emulate(model, plan), samples)[0].tolist() != run(model, samples)[0].tolist()
    found = run(emulate(model, plan, keep=["wide"]), samples)[0]
    assert np.array_equal(
        found, Interpreter(plan, keep=frozenset(["wide"])).run(_with_weight(model), samples)[0], equal_nan=True
    )


def _with_weight(model: onnx.ModelProto) -> onnx.ModelProto:
    found = onnx.ModelProto()
    found.CopyFrom(model)
    constant = found.graph.node[0]
    found.graph.initializer.append(numpy_helper.from_array(np.float32(1e-9), constant.output[0]))
    del found.graph.node[0]
    return found


def test_names_and_the_given_model_stay(zoo: dict[str, Any]) -> None:
    for graph, _ in zoo.values():
        before = graph.model.SerializeToString(deterministic=True)
        twin = emulate(graph.model, policy("Ascend310P3", "fp16"))
        assert graph.model.SerializeToString(deterministic=True) == before
        for field in ("input", "output"):
            assert list(getattr(twin.graph, field)) == list(getattr(graph.model.graph, field))
        names = [node.name for node in twin.graph.node]
        assert len(names) == len(set(names))
        assert METADATA_KEY in {entry.key for entry in twin.metadata_props}


def test_origin_and_fp32_change_no_number(zoo: dict[str, Any]) -> None:
    for mode in ("origin", "fp32"):
        for graph, reference in zoo.values():
            found = run(emulate(graph.model, policy("Ascend310P3", mode)), graph.samples)
            assert all(np.array_equal(a, b) for a, b in zip(reference, found, strict=True))


def test_refusals() -> None:
    graph = ZOO["mlp"]().model
    plan = policy("Ascend310P3", "fp16")
    with pytest.raises(PlanError, match="does not have: relu_2") as caught:
        emulate(graph, plan, keep=["relu_2"])
    assert "relu_1" in caught.value.hint
    with pytest.raises(PlanError, match=r"no fp32 kernel for 'gemm_0' \(Gemm\)"):
        emulate(graph, plan, keep=["gemm_0"])
    emulate(graph, policy("Ascend910B4", "fp16"), keep=["gemm_0"])
    old = onnx.ModelProto()
    old.CopyFrom(graph)
    old.opset_import[0].version = 9
    with pytest.raises(GateError, match="opset 11"):
        emulate(old, plan)


def test_the_grey_list_goes_by_the_first_input_that_is_no_constant() -> None:
    s = Sketch()
    x = s.input("x", ["N", 8])
    low = s.op("MatMul", x, s.random(8, 8), name="white")
    wide = s.op("Exp", x, name="grey_after_input")
    s.op("Add", low, wide, name="low_first", out="a")
    s.op("Add", wide, low, name="wide_first", out="b")
    s.op("Mul", s.weight(2.0), low, name="constant_first", out="c")
    s.op("Mul", s.op("Cast", low, to=TensorProto.FLOAT, name="cast"), s.weight(2.0), name="after_cast", out="d")
    for name in "abcd":
        s.output(name, ["N", 8])
    nodes = plan_edges(s.model(), policy("Ascend910B4", "mixed_float16")).nodes.values()
    low_ones = {use.name for use in nodes if use.rounding.output == "fp16"}
    assert low_ones == {"white", "low_first", "constant_first"}
