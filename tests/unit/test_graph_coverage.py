"""Coverage: every verdict, every kind of reason, subgraphs, constants that need no kernel, and the zoo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.zoo import ZOO, Sketch

from orchestrator.core.errors import GateError, PlanError
from orchestrator.graph.coverage import Coverage, NodeVerdict, cover


@pytest.fixture(autouse=True)
def _no_cann_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ASCEND_OPP_PATH", "ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("orchestrator.ascend.installed._DEFAULT_HOMES", ())


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Infer here: the safe door, a child process per file, has tests of its own."""

    def infer(path: Path, limits: object = None) -> onnx.ModelProto:
        return onnx.shape_inference.infer_shapes(onnx.load(path))

    monkeypatch.setattr("orchestrator.graph.coverage.covering.inferred", infer)


class Canvas:
    """One graph in a file, and coverage of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(
        self,
        nodes: Sequence[Any],
        *,
        soc: str | None = "Ascend310P3",
        toolchain: str = "atc",
        precision: str = "fp16",
        opset: int = 18,
        dtype: int = TensorProto.FLOAT,
        out: int | None = None,
        shape: Sequence[Any] = (1, 3, 8, 8),
        rank: int | None = None,
        weights: Sequence[Any] = (),
        domains: Sequence[str] = (),
    ) -> Coverage:
        inputs = [helper.make_tensor_value_info("x", dtype, shape)]
        axes = [f"y{axis}" for axis in range(len(shape) if rank is None else rank)]
        outputs = [helper.make_tensor_value_info("y", dtype if out is None else out, axes)]
        graph = helper.make_graph(list(nodes), "g", inputs, outputs, list(weights))
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), self.path)
        return cover(self.path, soc=soc, toolchain=toolchain, precision=precision)


@pytest.fixture
def draw(tmp_path: Path, in_this_process: None) -> Canvas:
    return Canvas(tmp_path / "model.onnx")


def one(op_type: str, *inputs: str, name: str = "it", **attributes: Any) -> Any:
    return helper.make_node(op_type, list(inputs) or ["x"], ["y"], name=name, **attributes)


def weight(name: str, *shape: int, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.zeros(shape, dtype), name)


def last(found: Coverage) -> NodeVerdict:
    return found.nodes[-1]


def test_ok_needs_parser_and_kernel(draw: Canvas) -> None:
    found = draw([one("Relu")])
    assert (found.verdict, found.counts) == ("ok", {"ok": 1, "slow": 0, "unknown": 0, "blocked": 0})
    assert found.offending() == ()
    assert last(found).reasons == ()
    assert (
        found.tables == "shipped: kernels CANN 8.1.RC1; parsers ONNX plugins of 2026-08-22; operator list of CANN 8.0.0"
    )


def test_slow_is_the_ai_cpu(draw: Canvas) -> None:
    nodes = [one("ScatterElements", "x", "i", "u", axis=0)]
    weights = [weight("i", 2, 2, dtype=np.int64), weight("u", 2, 2)]
    found = draw(nodes, shape=[4, 4], weights=weights)
    assert last(found).verdict == "slow"
    assert "ScatterElements of float32 runs on the AI CPU" in last(found).reasons[0]
    assert draw(nodes, shape=[4, 4], weights=weights, soc="Ascend910B4").verdict == "ok"  # A2 has the kernel


def test_unknown_is_what_no_table_tells(draw: Canvas) -> None:
    found = draw([one("Relu")], soc="Ascend950PR_9599")
    assert last(found).verdict == "unknown"
    assert "has none of this SoC" in last(found).reasons[0]
    bernoulli = draw([one("Bernoulli")])
    assert last(bernoulli).verdict == "unknown"
    assert "StatelessBernoulliV2" in last(bernoulli).reasons[0]


def test_blocked_by_a_parser_that_is_not_there(draw: Canvas) -> None:
    found = draw([one("CenterCropPad", "x", "s")], weights=[weight("s", 4, dtype=np.int64)])
    assert last(found).verdict == "blocked"
    assert last(found).reasons == ("ATC has no parser for CenterCropPad at any opset",)


def test_the_model_s_opset_decides_and_not_the_operator_s(draw: Canvas) -> None:
    found = draw([one("Relu")], opset=19)
    assert last(found).verdict == "blocked"
    assert "up to opset 18, this model has 19" in last(found).reasons[0]
    assert last(found).rewrite == "lower_opset"
    norm = draw([one("ReduceL2")])
    assert "opset 8-17, this model has 18" in last(norm).reasons[0]
    assert last(norm).rewrite == "decompose_reduce_norms"


def test_a_rewrite_that_removes_the_node_is_named(draw: Canvas) -> None:
    weights = [weight("s", 3), weight("b", 3)]
    found = draw([one("GroupNormalization", "x", "s", "b", num_groups=1)], opset=21, weights=weights)
    assert last(found).rewrite == "decompose_group_normalization"
    assert last(found).fix == "the rewrite decompose_group_normalization replaces it"
    gelu = draw([one("Gelu")], opset=20)
    assert (last(gelu).rewrite, last(gelu).reasons[0]) == (
        "decompose_gelu",
        "ATC has no parser for Gelu at any opset (new in opset 20)",
    )


def test_quantised_nodes_say_what_to_do_instead(draw: Canvas) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="quantise"),
        one("DequantizeLinear", "q", "s", name="back"),
    ]
    for toolchain in ("atc", "cann-ep"):
        found = draw(nodes, weights=[numpy_helper.from_array(np.float32(0.1), "s")], toolchain=toolchain)
        assert [node.verdict for node in found.nodes] == ["blocked", "blocked"]
    found = draw(nodes, weights=[numpy_helper.from_array(np.float32(0.1), "s")])
    assert "AMCT" in found.nodes[0].fix
    assert "msModelSlim" in found.nodes[0].fix


def test_another_operator_domain(draw: Canvas) -> None:
    found = draw([one("FusedGelu", domain="com.microsoft")], domains=["com.microsoft"])
    assert last(found).verdict == "blocked"
    assert "operator domain 'com.microsoft'" in last(found).reasons[0]
    assert found.to_json()["operators"] == {"com.microsoft::FusedGelu": {"blocked": 1}}
    npu = draw([one("NPUMish", domain="npu")], domains=["npu"])
    assert npu.verdict in {"ok", "unknown"}  # parsed; its type is not inferred


def test_a_kernel_that_other_socs_have(draw: Canvas) -> None:
    weights = [weight("n", 1, dtype=np.int64)]
    nodes = [helper.make_node("IsNaN", ["x"], ["y"], name="it")]
    found = draw(nodes, out=TensorProto.BOOL, weights=weights)
    assert (last(found).verdict, last(found).reasons[0]) == (
        "blocked",
        "IsNan has no kernel on ascend310p (CANN 8.1.RC1), nor on the AI CPU",
    )
    assert draw(nodes, out=TensorProto.BOOL, soc="Ascend910B4").verdict == "ok"


@pytest.mark.parametrize(
    ("soc", "precision", "verdict"),
    [
        ("Ascend310P3", "fp16", "ok"),
        ("Ascend310P3", "mixed_float16", "ok"),
        ("Ascend310P3", "cube_fp16in_fp32out", "ok"),
        ("Ascend310P3", "origin", "blocked"),
        ("Ascend310P3", "fp32", "blocked"),
        ("Ascend910B4", "origin", "ok"),
        ("Ascend910B4", "mixed_bfloat16", "ok"),
    ],
)
def test_a_precision_mode_decides_what_a_conv_is_given(draw: Canvas, soc: str, precision: str, verdict: str) -> None:
    found = draw([one("Conv", "x", "w")], weights=[weight("w", 4, 3, 3, 3)], soc=soc, precision=precision)
    assert last(found).verdict == verdict
    if verdict == "blocked":
        assert "Conv2D has no kernel for float32 on ascend310p" in last(found).reasons[0]
        assert "use precision fp16" in last(found).fix


def test_bfloat16_where_there_is_none(draw: Canvas) -> None:
    with pytest.raises(PlanError, match="Ascend310P3 has no bfloat16"):
        draw([one("Relu")], precision="mixed_bfloat16")


def test_wide_types(draw: Canvas) -> None:
    mod = draw([one("Mod", "x", "x")], dtype=TensorProto.INT64, shape=[4])
    assert (last(mod).verdict, last(mod).rewrite) == ("blocked", "narrow_int64")
    add = draw([one("Add", "x", "x")], dtype=TensorProto.INT64, shape=[4])
    assert last(add).verdict == "slow"
    concat = draw([one("Concat", "x", "x", axis=0)], dtype=TensorProto.INT64, shape=[4])
    assert last(concat).verdict == "unknown"
    assert "does not say whether ConcatD takes int64" in last(concat).reasons[0]
    double = draw([one("Relu")], dtype=TensorProto.DOUBLE, shape=[4])
    assert (last(double).verdict, last(double).rewrite) == ("blocked", "narrow_float64")
    ids = draw(
        [one("Gather", "t", "x")],
        dtype=TensorProto.INT64, out=TensorProto.FLOAT, shape=[4], rank=2, weights=[weight("t", 10, 4)],
    )  # fmt: skip
    assert ids.verdict == "ok"


def test_what_the_compiler_computes_needs_no_kernel(draw: Canvas) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("Mod", ["s", "two"], ["m"], name="folded"),
        helper.make_node("Reshape", ["x", "m"], ["y"], name="reshape"),
    ]
    assert draw(nodes, weights=[weight("two", 1, dtype=np.int64)]).verdict == "ok"


def test_a_subgraph_s_node_is_found_with_its_path(draw: Canvas) -> None:
    inner = Sketch(prefix="then/")
    inner.op("IsNaN", "x", name="hidden", out="then/n")
    inner.op("Cast", "then/n", to=TensorProto.FLOAT, out="then/y")
    inner.output("then/y", [1, 3, 8, 8])
    other = Sketch(prefix="else/")
    other.op("Relu", "x", out="else/y")
    other.output("else/y", [1, 3, 8, 8])
    nodes = [one("If", "c", name="choose", then_branch=inner.graph(), else_branch=other.graph())]
    found = draw(nodes, weights=[numpy_helper.from_array(np.array(True), "c")])
    bad = found.offending("blocked")
    assert [(node.node, node.path, node.op_type) for node in bad] == [("hidden", "choose/then_branch", "IsNaN")]
    assert len(found.nodes) == 4


def test_the_source_line_that_the_exporter_kept(draw: Canvas) -> None:
    node = one("CenterCropPad", "x", "s")
    node.metadata_props.add(key="source", value="model.py:12")
    found = draw([node], weights=[weight("s", 4, dtype=np.int64)])
    assert last(found).source == "model.py:12"
    assert found.to_json()["offending"][0]["source"] == "model.py:12"


def test_the_cann_provider_never_uses_the_cpu_unseen(draw: Canvas) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="a"),
        helper.make_node("Trilu", ["a"], ["b"], name="odd"),
        helper.make_node("Relu", ["b"], ["y"], name="c"),
    ]
    found = draw(nodes, toolchain="cann-ep", soc="Ascend910B4", opset=16)
    assert [node.verdict for node in found.nodes] == ["ok", "blocked", "ok"]
    assert "it would run on the CPU" in found.nodes[1].reasons[0]
    assert found.nodes[1].rewrite == "decompose_trilu"
    assert found.splits == 3
    assert "into 3 parts" in found.notes[0]


def test_names_must_be_there_and_differ(draw: Canvas) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="same"),
        helper.make_node("Relu", ["a"], ["b"], name="same"),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    found = draw(nodes)
    assert [node.verdict for node in found.nodes] == ["ok", "blocked", "ok"]
    assert found.nodes[1].rewrite == "name_nodes"
    assert found.nodes[2].node == "Relu_2 (unnamed)"


def test_what_cannot_be_asked(draw: Canvas) -> None:
    for change, says in (
        ({"toolchain": "onnx"}, "nothing for Ascend"),
        ({"toolchain": "gcc"}, "unknown toolchain 'gcc'"),
        ({"precision": "int1"}, "unknown precision mode"),
        ({"soc": None}, "atc compiles for a SoC"),
        ({"soc": "Ascend310P"}, "unknown SoC"),
    ):
        with pytest.raises(PlanError, match=says):
            draw([one("Relu")], **change)


def test_files_come_in_through_the_safe_door(tmp_path: Path) -> None:
    draw = Canvas(tmp_path / "model.onnx")
    assert draw([one("Relu")]).verdict == "ok"
    assert draw([one("FusedGelu", domain="com.microsoft")], domains=["com.microsoft"]).verdict == "blocked"


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(GateError):
        cover(path, soc="Ascend310P3", toolchain="atc")


BLOCKED_BY_ATC = {
    "embedding": {"ReduceL2"}, "loop": {"Loop"}, "loop_growing": {"Loop"}, "scan": {"Scan"}, "nested": {"Loop", "Mod"}
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_zoo_on_310p3(name: str, tmp_path: Path, in_this_process: None) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(ZOO[name]().model, path)
    found = cover(path, soc="Ascend310P3", toolchain="atc")
    assert {node.op_type for node in found.offending("blocked")} == BLOCKED_BY_ATC.get(name, set())
    assert {node.op_type for node in found.offending("unknown")} <= {"Resize"}
    assert (
        sum(found.counts.values())
        == len(found.nodes)
        == sum(count for row in found.to_json()["operators"].values() for count in row.values())
    )
