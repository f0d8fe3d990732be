"""A CANN on the machine: its tables are found, read, and beat the shipped ones. The operator package here is a small copy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from orchestrator.ascend.installed import find_opp, read_cann
from orchestrator.core.errors import InfraError
from orchestrator.graph.coverage import cover

RELU = {
    "input0": {"dtype": "float16,float,float16", "name": "x"},
    "precision_reduce": {"flag": "false"},
    "dynamicShapeSupport": {"flag": "true"},
}
MATMUL = {"input0": {"name": "x1"}, "input1": {"name": "x2"}, "precision_reduce": {"flag": "true"}}
CPU = {"Sign": {"input0": {"name": "x", "type": "DT_FLOAT,DT_DOUBLE"}}}


@pytest.fixture(autouse=True)
def _no_cann_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ASCEND_OPP_PATH", "ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("orchestrator.ascend.installed._DEFAULT_HOMES", ())


def make_cann(home: Path, operators: Mapping[str, Any], *, family: str = "ascend310p", keys: bool = True) -> Path:
    config = home / "opp/built-in/op_impl/ai_core/tbe/config" / family
    config.mkdir(parents=True)
    (config / f"aic-{family}-ops-info.json").write_text(json.dumps(operators))
    cpu = home / "opp/built-in/op_impl/aicpu/aicpu_kernel/config"
    cpu.mkdir(parents=True)
    (cpu / "aicpu_kernel.json").write_text(json.dumps(CPU))
    (home / "opp/version.info").write_text("Version=8.9.1\ntimestamp=20260801\n")
    if keys:
        plugin = home / "opp/built-in/framework/onnx"
        plugin.mkdir(parents=True)
        text = [f"ai.onnx::{opset}::{name}" for opset in range(8, 23) for name in ("Relu", "MatMul", "Sign", *FILLERS)]
        (plugin / "libops_all_onnx_plugin.so").write_bytes(b"\x7fELF\0" + b"\0".join(map(str.encode, text)) + b"\0\xff")
    return home


FILLERS = [f"Filler{number}" for number in range(8)]


def graph(path: Path, *operators: str, opset: int = 18) -> Path:
    names = ["x", *(f"t{number}" for number in range(len(operators) - 1)), "y"]
    nodes = [
        helper.make_node(op, [names[i]] * (2 if op == "MatMul" else 1), [names[i + 1]], name=f"{op.lower()}_{i}")
        for i, op in enumerate(operators)
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("x", "y")]
    made = helper.make_graph(nodes, "g", values[:1], values[1:])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def test_it_is_found_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_opp() is None
    home = make_cann(tmp_path / "cann", {"Relu": RELU})
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(home))
    assert find_opp() == home / "opp"
    other = make_cann(tmp_path / "other", {"Relu": RELU})
    monkeypatch.setenv("ASCEND_OPP_PATH", str(other / "opp"))
    assert find_opp() == other / "opp"
    assert find_opp(home) == find_opp(home / "opp") == home / "opp"


def test_a_folder_that_is_named_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="no operator information"):
        find_opp(tmp_path)


def test_what_is_read(tmp_path: Path) -> None:
    cann = read_cann(make_cann(tmp_path, {"Relu": RELU, "BatchMatMulV2": MATMUL}) / "opp", "Ascend310P")
    assert cann is not None
    assert (cann.version, cann.kernels.name) == ("8.9.1", f"CANN 8.9.1 at {tmp_path}")
    relu = cann.kernels.kernel("Relu", "ascend310p")
    assert relu is not None
    assert relu.inputs == (frozenset({"float16", "float32"}),)
    assert (relu.mixed, relu.dynamic) == ("black", True)
    matmul = cann.kernels.kernel("BatchMatMulV2", "ascend310p")
    assert matmul is not None
    assert (matmul.mixed, matmul.takes("float32"), matmul.cube) == ("white", False, True)
    assert cann.kernels.ai_cpu("Sign") == (frozenset({"float32", "float64"}),)
    assert cann.parsers is not None
    assert ("", 21, "Relu") in cann.parsers
    assert read_cann(tmp_path / "opp", "ascend910b") is None


def test_split_files_and_custom_operators_are_read_too(tmp_path: Path) -> None:
    make_cann(tmp_path, {"Relu": RELU})
    config = tmp_path / "opp/built-in/op_impl/ai_core/tbe/config/ascend310p"
    (config / "aic-ascend310p-ops-info-nn.json").write_text(json.dumps({"Mish": RELU}))
    custom = tmp_path / "opp/vendors/mine/op_impl/ai_core/tbe/config/ascend310p"
    custom.mkdir(parents=True)
    (custom / "aic-ascend310p-ops-info.json").write_text(json.dumps({"Gelu": RELU}))
    cann = read_cann(tmp_path / "opp", "ascend310p")
    assert cann is not None
    assert set(cann.kernels.core["ascend310p"]) == {"Relu", "Mish", "Gelu"}


def test_it_beats_the_shipped_tables_and_says_so(tmp_path: Path) -> None:
    model = graph(tmp_path / "model.onnx", "Relu", "Sign", "MatMul", opset=21)
    before = cover(model, soc="Ascend310P3", toolchain="atc")
    assert before.verdict == "blocked"  # no parser for opset 21 in the shipped tables
    assert before.tables.startswith("shipped: kernels CANN 8.1.RC1; parsers ONNX plugins")
    home = make_cann(tmp_path / "cann", {"Relu": RELU})
    after = cover(model, soc="Ascend310P3", toolchain="atc", installed=home)
    assert after.tables == f"installed CANN 8.9.1 at {home}"
    assert [node.verdict for node in after.nodes] == ["ok", "slow", "blocked"]  # MatMul has no kernel in this package
    assert "BatchMatMulV2 has no kernel" in after.nodes[2].reasons[0]


def test_one_from_the_environment_is_used_without_being_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph(tmp_path / "model.onnx", "Relu")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(make_cann(tmp_path / "cann", {"Relu": RELU}, keys=False)))
    found = cover(model, soc="Ascend310P3", toolchain="atc")
    assert found.tables.startswith("installed CANN 8.9.1")
    assert "; parsers: ONNX plugins" in found.tables  # libraries that tell no keys leave the shipped parsers
    other = cover(model, soc="Ascend910B4", toolchain="atc")
    assert other.tables.startswith("shipped")
    assert "no operator information of ascend910b" in other.notes[0]


@pytest.mark.parametrize("content", ["{", "[]", "\udcff", "[" * 100_000])
def test_damaged_information_is_an_error_of_the_machine(tmp_path: Path, content: str) -> None:
    make_cann(tmp_path, {"Relu": RELU})
    file = tmp_path / "opp/built-in/op_impl/ai_core/tbe/config/ascend310p/aic-ascend310p-ops-info.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InfraError, match="CANN's operator information"):
        read_cann(tmp_path / "opp", "ascend310p")
