from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from orchestrator.ascend.precision import policy
from orchestrator.core.errors import PlanError, UserCodeError
from orchestrator.graph.forecast.batches import Batches, fitted, synthetic
from orchestrator.graph.forecast.cost import Cost
from orchestrator.graph.forecast.files import write_forecast
from orchestrator.graph.forecast.forecast import forecast
from orchestrator.graph.forecast.mask import open_mask_session
from orchestrator.graph.forecast.pieces import take_apart
from orchestrator.graph.forecast.predict import Model
from orchestrator.graph.forecast.ranges import Ranges, measure_ranges
from orchestrator.graph.forecast.result import Forecast
from orchestrator.graph.forecast.search import Candidate, Probe, Search
from orchestrator.graph.forecast.shadow import cumulative, local
from orchestrator.graph.forecast.workspace import Workspace, open_workspace
from orchestrator.graph.parity import compare
from orchestrator.graph.read import inspect_onnx
from orchestrator.graph.spec import TensorSpec
from orchestrator.graph.twin.emulate import emulate
from orchestrator.graph.verdict import Thresholds, thresholds_for
from tests.support.zoo import ZOO, Sketch, ZooGraph, _normal

FP16 = thresholds_for("fp16")


def saved(tmp_path: Path, graph: ZooGraph) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(graph.model, path)
    return path


def foresee(tmp_path: Path, graph: ZooGraph, soc: str = "Ascend310P3", mode: str = "fp16", **options: Any) -> Forecast:
    asked = {"thresholds": FP16, "samples": graph.samples, **options}
    return forecast(saved(tmp_path, graph), policy=policy(soc, mode), threads=1, **asked)


def opened(tmp_path: Path, graph: ZooGraph, size: int = 2) -> tuple[Workspace, Batches, Ranges]:
    path, folder = saved(tmp_path, graph), tmp_path / "work"
    folder.mkdir()
    space = open_workspace(path, folder, threads=1)
    batches = Batches(inspect_onnx(path).inputs, graph.samples, size=size)
    space.measure_shapes(next(iter(batches)))
    return space, batches, measure_ranges(space, batches)


def every_tensor(graph: ZooGraph) -> dict[str, np.ndarray[Any, Any]]:
    """Run the plain graph with all float tensors as outputs."""
    model = onnx.ModelProto.FromString(graph.model.SerializeToString())
    own = {value.name for value in model.graph.output}
    typed = onnx.shape_inference.infer_shapes(model).graph.value_info
    names = [v.name for v in typed if v.type.tensor_type.elem_type == TensorProto.FLOAT and v.name not in own]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    wanted = [entry.name for entry in session.get_outputs()]
    return dict(zip(wanted, session.run(wanted, graph.samples), strict=True))


@pytest.mark.parametrize("name", ["mlp", "cnn_bn", "attention", "rmsnorm_massive", "if_branch", "groupnorm"])
def test_ranges_are_those_of_numpy_over_all_outputs(tmp_path: Path, name: str) -> None:
    graph = ZOO[name]()
    _, _, seen = opened(tmp_path, graph, size=64 if name == "if_branch" else 3)  # one batch takes one branch
    found = every_tensor(graph)
    compared = [tensor for tensor in found if tensor in seen.tensors and found[tensor].dtype == np.float32]
    assert len(compared) > 3
    for tensor in compared:
        value = found[tensor].astype(np.float64)
        assert seen.tensors[tensor].absmax == pytest.approx(np.abs(value).max(), rel=1e-4)
        assert seen.tensors[tensor].elements == value.size
        assert seen.tensors[tensor].rms == pytest.approx(np.sqrt(np.mean(value**2)), rel=1e-3)


@pytest.mark.parametrize("low", [-0.5, 0.25, None])
def test_clamped_tensors_have_the_range_that_reading_them_would_show(tmp_path: Path, low: float | None) -> None:
    s = Sketch(1)
    x = s.input("x", ["N", 512])
    s.op("Clip", x, "" if low is None else s.weight(np.float32(low)), s.weight(np.float32(6.0)), out="held")
    s.op("Relu", "held", out="rectified")
    s.op("Mul", "rectified", s.weight(2.0), out="y")
    s.output("y", ["N", 512])
    x_value = (np.random.default_rng(7).standard_normal((5, 512)) * 20).astype(np.float32)
    _, _, seen = opened(tmp_path, ZooGraph(s.model(), {"x": x_value}, True), size=2)
    held = np.clip(x_value, low, np.float32(6.0))
    for name, value in (("held", held), ("rectified", np.maximum(held, 0))):
        found = seen.tensors[name]
        nonzero = np.abs(value[value != 0])
        assert found.absmax == np.abs(value).max()
        assert found.rms == pytest.approx(np.sqrt(np.mean(value.astype(np.float64) ** 2)), rel=1e-5)
        assert found.subnormal_share == pytest.approx(np.mean(nonzero < 2.0**-14), abs=1e-3)


def test_values_out_of_range_are_counted_exactly(tmp_path: Path) -> None:
    s = Sketch(1)
    x = s.input("x", ["N", 8])
    s.op("Mul", x, s.weight(1.0), out="y")
    s.output("y", ["N", 8])
    x_value = np.zeros((4, 8), np.float32)
    x_value[0, :3], x_value[1, 0], x_value[2, 0], x_value[3, :2] = 7e4, np.inf, np.nan, 1e-5
    _, _, seen = opened(tmp_path, ZooGraph(s.model(), {"x": x_value}, True), size=3)
    found = seen.tensors["y"]
    assert (found.over, found.nonfinite, found.exact) == (3, 2, True)
    assert found.subnormal_share == pytest.approx(2 / 7)
    assert found.flushed_share == 0.0


@pytest.mark.parametrize("mode", ["fp16", "mixed_float16", "cube_fp16in_fp32out"])
@pytest.mark.parametrize(
    "name", ["cnn_bn", "lstm", "attention_masked", "loop", "nested", "rmsnorm_massive", "layernorm"]
)
def test_the_shadow_computes_what_the_twin_computes(tmp_path: Path, name: str, mode: str) -> None:
    graph = ZOO[name]()
    rules = policy("Ascend910B4", mode)
    space, batches, seen = opened(tmp_path, graph, size=64)
    _, found = cumulative(space, batches, take_apart(space, rules), seen.tensors)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    twin = onnxruntime.InferenceSession(emulate(graph.model, rules).SerializeToString(), options)
    names = [entry.name for entry in graph.model.graph.output]
    for output, value in zip(names, twin.run(names, graph.samples), strict=True):
        np.testing.assert_allclose(found[output], value, rtol=1e-3, atol=1e-5)


def test_local_damage_is_a_nodes_own(tmp_path: Path) -> None:
    s = Sketch(3)
    x = s.input("x", ["N", 64])
    a = s.op("Add", x, s.weight(2048.0), name="coarse", out="a")
    b = s.op("Sub", a, s.weight(2048.0), name="cancels", out="b")
    s.op("Mul", b, s.weight(2.0), name="exact", out="y")
    s.output("y", ["N", 64])
    graph = ZooGraph(s.model(), {"x": _normal(4, 64)}, False)
    space, batches, seen = opened(tmp_path, graph)
    pieces = take_apart(space, policy("Ascend310P3", "fp16"))
    alone, so_far = local(space, batches, pieces, seen.tensors), cumulative(space, batches, pieces, seen.tensors)[0]
    assert alone["b"].sqnr_db < 20  # its rounded input has lost the digits that are left
    assert alone["y"].sqnr_db > 60
    assert so_far["y"].sqnr_db < 20


def test_graphs_that_must_overflow_do_although_the_runtimes_own_fp16_hides_it(tmp_path: Path) -> None:
    for soc, cause in (("Ascend910B4", "overflow"), ("Ascend310P3", "overflow")):
        folder = tmp_path / soc
        folder.mkdir()
        found = foresee(folder, ZOO["overflow_trap"](), soc, keep="none")
        assert found.overflow
        assert found.verdict == "no"
        assert {unit.cause for unit in found.keep.units} >= {cause}
        assert found.offending


def test_keep_list_restores_the_massive_activation_net(tmp_path: Path) -> None:
    found = foresee(tmp_path, ZOO["rmsnorm_massive"]())
    assert found.before.sqnr_db < 10
    assert found.after.sqnr_db >= 55
    assert found.verdict == "ok"
    assert found.keep.seconds <= 5
    squares = {node for node in found.keep.nodes if node.endswith("/square")}
    assert squares == {f"block{n}/norm/square" for n in range(8)} | {"final/square"}
    assert {name for unit in found.keep.units for name in unit.kept} <= set(found.keep.nodes)
    assert found.after.cost.flops_share < 0.05
    assert len(found.fused_overflow) == 0  # compilers keep these inside one kernel; strict gates all the same


def test_must_nodes_survive_a_search_that_could_pass_without_them(tmp_path: Path) -> None:
    """The thresholds ask for more than the must list gives, so the search runs; it may not touch that list."""
    found = foresee(tmp_path, ZOO["rmsnorm_massive"](), "Ascend910B4", thresholds=Thresholds(65.0, 0.9995))
    must = {name for unit in found.keep.units for name in unit.kept}
    assert {one.node for one in found.keep.must} == must
    assert len([name for name in must if name.endswith("/square")]) == 9
    assert found.keep.should
    assert found.keep.runs > 2
    assert found.after.sqnr_db >= 65
    assert {one.node for one in found.keep.should}.isdisjoint(must)


@pytest.mark.parametrize("name", ["cnn_bn", "attention", "reductions_65504", "lstm", "if_branch", "gelu"])
@pytest.mark.parametrize("accumulate", ["fp32", "fp16"])
def test_the_mask_session_answers_as_the_real_twin(tmp_path: Path, name: str, accumulate: Any) -> None:
    graph = ZOO[name]()
    rules = policy("Ascend910B4", "fp16", accumulate=accumulate)
    space, batches, seen = opened(tmp_path, graph, size=64)
    fixed = {"Constant", "If", "LSTM"}
    names = [n.name for n in space.graph.node if n.op_type not in fixed and rules.can_keep(n.op_type)]
    random = np.random.default_rng(5)
    session = open_mask_session(
        space, take_apart(space, rules), must=(), candidates=names, batches=batches, reference=seen.outputs
    )
    for share in (0.0, 0.3, 0.7, 1.0):
        keep = [name for name in names if random.random() < share]
        real = compare(seen.outputs, Model(space, batches, rules, keep)(graph.samples))
        for output, metrics in session.metrics(keep).items():
            assert metrics.max_abs == pytest.approx(real[output].max_abs, rel=0.02, abs=1e-6)
            assert metrics.nonfinite_mismatched == real[output].nonfinite_mismatched


def test_zeros_that_reach_a_division_are_kept(tmp_path: Path) -> None:
    found = foresee(tmp_path, ZOO["epsilon_lost"]())
    assert found.underflow
    assert any(unit.cause == "zero_into_division" for unit in found.keep.units)
    assert found.before.sqnr_db < 10
    assert found.after.sqnr_db > 55


def test_sums_inside_reductions_are_measured(tmp_path: Path) -> None:
    graph = ZOO["reductions_65504"]()
    found = foresee(tmp_path, graph, keep="none")
    (sum_,) = found.reductions
    expected = np.abs(graph.samples["x"].astype(np.float64)).sum(axis=-1).max()
    assert sum_.largest_sum == pytest.approx(expected, rel=1e-4)
    assert not sum_.narrow


def stuck_graph() -> ZooGraph:
    s = Sketch(2)
    x = s.input("x", ["N", 16])
    h = s.op("MatMul", x, s.random(16, 16, scale=8000), name="first")
    g = s.op("MatMul", s.op("Mul", h, s.weight(1e-4), name="less"), s.random(16, 16, scale=3000), name="second")
    h = s.op("Add", h, s.op("Relu", g, name="relu"), name="add")
    mean = s.op("ReduceMean", s.op("Mul", h, h, name="square"), s.ints(-1), keepdims=1, name="mean")
    root = s.op("Sqrt", s.op("Add", mean, s.weight(1.0), name="eps"), name="root")
    s.op("MatMul", s.op("Div", h, root, name="div"), s.random(16, 4), name="head", out="y")
    s.output("y", ["N", 4])
    return ZooGraph(s.model(), {"x": _normal(8, 16)}, True)


def test_what_cannot_be_kept_gets_a_scaling_that_is_proved(tmp_path: Path) -> None:
    found = foresee(tmp_path, stuck_graph())
    assert found.verdict == "no"
    assert {name for unit in found.keep.cannot for name in unit.stuck} >= {"first", "second"}
    (way,) = found.keep.proposals
    assert way.status == "proved"
    assert {"first", "second", "eps"} <= set(way.changes)
    assert way.max_abs is not None
    assert way.max_abs < 1e-4
    assert way.sqnr_db_before is not None
    assert way.sqnr_db_after is not None
    assert way.sqnr_db_before < 10
    assert way.sqnr_db_after > 55
    here = tmp_path / "other"
    here.mkdir()
    assert foresee(here, stuck_graph(), "Ascend910B4").keep.cannot == ()  # that one multiplies fp32


def test_what_no_scaling_saves_is_blocked(tmp_path: Path) -> None:
    s = Sketch(3)
    s.op("MatMul", s.input("x", ["N", 16]), s.random(16, 4, scale=3e4), name="last", out="y")
    s.output("y", ["N", 4])
    found = foresee(tmp_path, ZooGraph(s.model(), {"x": _normal(8, 16)}, True))
    assert found.verdict == "no"
    assert any(one.status == "blocked" and "output of the model" in one.text for one in found.keep.proposals)
    assert any("blocked" in reason for reason in found.reasons)
    assert "last" in found.offending


def test_bodies_of_loops_count_and_it_is_said_that_they_are_not_looked_into(tmp_path: Path) -> None:
    found = foresee(tmp_path, ZOO["loop_growing"]())
    assert found.inside
    assert any("not shown one by one" in note for note in found.notes)
    assert found.before.sqnr_db < 10
    assert found.after.sqnr_db > 55


def test_synthetic_samples_only_warn(tmp_path: Path) -> None:
    for name in ("mlp", "overflow_trap"):
        folder = tmp_path / name
        folder.mkdir()
        found = foresee(folder, ZOO[name](), samples=None)
        assert found.verdict == "warn"
        assert any("synthetic" in reason for reason in found.reasons)


def test_task_metrics_are_those_of_reference_and_twin(tmp_path: Path) -> None:
    graph = ZOO["overflow_trap"]()
    output = graph.model.graph.output[0].name

    def evaluate(predict: Any) -> dict[str, float]:
        return {"finite": float(np.mean(np.abs(predict(graph.samples)[output]) < 1e9)), "count": 1.0}

    asked = Thresholds(40.0, 0.9995, metric_drop={"finite": 0.0})
    found = foresee(tmp_path, graph, "Ascend910B4", evaluate=evaluate, thresholds=asked)
    assert found.reference_task == {"finite": 1.0, "count": 1.0}
    assert found.before.task["finite"] < 1.0
    assert found.after.task["finite"] == 1.0
    assert found.verdict == "ok"


def test_a_mode_that_rounds_nothing_is_identical(tmp_path: Path) -> None:
    found = foresee(tmp_path, ZOO["mlp"](), mode="origin")
    assert found.verdict == "ok"
    assert found.before.sqnr_db > 120


def test_a_list_that_is_given_is_taken_as_it_is(tmp_path: Path) -> None:
    graph = ZOO["overflow_trap"]()
    names = [node.name for node in graph.model.graph.node]
    found = foresee(tmp_path, graph, keep=names)
    assert set(found.keep.nodes) == set(names)
    assert found.verdict == "ok"
    with pytest.raises(PlanError, match="does not have"):
        foresee(tmp_path, graph, keep=["nowhere"])


def test_files_are_in_the_forms_that_atc_reads(tmp_path: Path) -> None:
    found = foresee(tmp_path, ZOO["rmsnorm_massive"](), mode="mixed_float16")
    folder = tmp_path / "out"
    assert all(path.is_file() for path in write_forecast(found, folder))
    lines = (folder / "keep_dtype.cfg").read_text().splitlines()
    assert lines == list(found.keep.nodes)
    customized = (folder / "customize_dtypes.cfg").read_text().splitlines()
    assert "block0/norm/square::InputDtype:float32,float32,OutputDtype:float32" in customized
    lists = json.loads((folder / "modify_mixlist.json").read_text())
    assert lists == {
        "black-list": {"to-remove": [], "to-add": ["ReduceMean"]}, "white-list": {"to-remove": [], "to-add": []},
    }  # fmt: skip
    reasons = json.loads((folder / "keep_reasons.json").read_text())
    assert [line["node"] for line in reasons["lines"]] == lines
    assert all(line["reasons"] for line in reasons["lines"])
    assert "Mul" in reasons["not_in_modify_mixlist"]
    assert json.loads((folder / "forecast.json").read_text())["status"] == "uncalibrated"


def test_the_page_escapes_names_and_loads_nothing(tmp_path: Path) -> None:
    s = Sketch(1)
    evil = '<script>alert("x")</script>'
    x = s.input("x", ["N", 4])
    h = s.op("Mul", x, s.weight(3e5), name=evil, out="big<img src=x>")
    s.op("Div", h, s.weight(3e5), name="</title><b>", out="y")
    s.output("y", ["N", 4])
    found = foresee(tmp_path, ZooGraph(s.model(), {"x": _normal(4, 4)}, True))
    write_forecast(found, tmp_path / "out")
    page = (tmp_path / "out" / "forecast.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=|url\(|@import", re.sub(r"&lt;.*?&gt;", "", page))
    assert "uncalibrated" in page
    assert page.count("<svg") == 3
    assert "width=device-width" in page


def test_json_has_no_number_that_json_lacks(tmp_path: Path) -> None:
    s = Sketch(1)
    s.op("Log", s.input("x", ["N", 4]), name="log", out="y")
    s.output("y", ["N", 4])
    found = foresee(tmp_path, ZooGraph(s.model(), {"x": _normal(4, 4)}, True))
    json.dumps(found.to_json(), allow_nan=False)
    assert found.ranges["y"].nonfinite > 0


def test_samples_are_cut_as_the_graph_takes_them() -> None:
    free, fixed = TensorSpec("x", "float32", ("N", 3)), TensorSpec("x", "float32", (4, 3))
    values = {"x": np.zeros((10, 3), np.float32)}
    assert [len(piece["x"]) for piece in Batches([free], values, size=4)] == [4, 4, 2]
    with pytest.raises(UserCodeError, match="do not fill"):
        Batches([fixed], values)
    whole = fitted(values, [fixed])
    assert len(whole["x"]) == 12
    part, rows = Batches([fixed], whole).chosen([5])
    assert (part.count, rows) == (4, [4, 5, 6, 7])
    with pytest.raises(UserCodeError, match="the graph"):
        Batches([free], {"other": values["x"]})
    wide = {"x": np.array([[1], [2**40]])}
    with pytest.raises(UserCodeError, match="cannot hold"):
        fitted(wide, [TensorSpec("x", "int32", ("N", 1))])
    made = synthetic([TensorSpec("ids", "int64", ("N", "T")), TensorSpec("scale", "float32", ())])
    assert made["ids"].shape == (8, 8)
    assert made["scale"].shape == ()


def test_the_search_ends_in_the_smallest_list_that_passes() -> None:
    needed = {"c", "f"}
    candidates = [Candidate(name, frozenset({name}), 1.0, worth) for worth, name in enumerate("abcdefgh")]

    def probe(nodes: frozenset[str]) -> Probe:
        return Probe(10.0 * len(nodes & needed), needed <= nodes)

    chosen, passed = Search(probe).find(candidates)
    assert passed
    assert {one.tensor for one in chosen} == needed
    chosen, passed = Search(lambda nodes: Probe(float("c" in nodes), False)).find(candidates)
    assert not passed


def test_movement_between_kept_nodes_is_kept_with_them(tmp_path: Path) -> None:
    s = Sketch(4)
    h = s.op("MatMul", s.input("x", ["N", 4, 8]), s.random(8, 8), name="first")
    h = s.op("Reshape", h, s.ints(0, 8, 4), name="reshape")
    h = s.op("Transpose", h, perm=[0, 2, 1], name="transpose")
    h = s.op("MatMul", h, s.random(8, 8), name="second")
    s.op("Transpose", h, perm=[0, 2, 1], name="last", out="y")
    s.output("y", ["N", 8, 4])
    graph = ZooGraph(s.model(), {"x": _normal(6, 4, 8)}, False)
    found = foresee(tmp_path, graph, "Ascend910B4", thresholds=Thresholds(100.0, None))
    assert found.verdict == "ok"  # one node that is left out would round everything again
    assert set(found.keep.nodes) >= {"first", "reshape", "transpose", "second"}
    assert all(one.reasons for one in found.keep.should)
    assert found.after.cost.casts_added >= 0
    assert found.after.cost.casts_removed >= 0


def test_casts_that_vanish_are_said_to_be_removed() -> None:
    assert Cost(3, 1.0, 0, 2, -40).casts == "2 removed"
    assert Cost(3, 1.0, 2, 0, 40).casts == "2 added"


def test_weights_are_shared_and_big_constants_lifted(tmp_path: Path) -> None:
    s = Sketch(1)
    x = s.input("x", ["N", 64])
    value = numpy_helper.from_array(_normal(64, 64))
    weight = s.op("Constant", value=value, name="big")
    s.op("MatMul", x, weight, out="y")
    s.output("y", ["N", 64])
    graph = ZooGraph(s.model(), {"x": _normal(4, 64)}, False)
    space, _, seen = opened(tmp_path, graph)
    assert space.model.ByteSize() < 4096
    np.testing.assert_array_equal(space.weight(weight), numpy_helper.to_array(value))
    np.testing.assert_allclose(seen.outputs["y"], graph.samples["x"] @ numpy_helper.to_array(value), atol=1e-4)
    nameless = onnx.ModelProto.FromString(ZOO["mlp"]().model.SerializeToString())
    for node in nameless.graph.node:
        node.name = ""
    here = tmp_path / "nameless"
    here.mkdir()
    found = foresee(here, dataclasses.replace(ZOO["mlp"](), model=nameless))
    assert any("no name of their own" in note for note in found.notes)
