"""Tables of operators and kernels: counts that must be, the exact-match rule, hardware facts."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from orchestrator.ascend.kernels import ai_cpu, cube_dtypes, kernel, shipped
from orchestrator.ascend.operators import (
    ascend_types,
    atc_operator,
    cann_provider_takes,
    is_local,
    lowered,
    mindspore_lite_parses,
    registered_since,
    tables_version,
)

FAMILIES = {"ascend310", "ascend310b", "ascend310p", "ascend910", "ascend910b", "ascend910_93"}


def raw(name: str) -> dict[str, object]:
    return json.loads(files("orchestrator.ascend").joinpath(f"data/{name}.json").read_text(encoding="utf-8"))


def test_counts() -> None:
    atc, lite, provider = raw("operators_atc"), raw("operators_mindspore_lite"), raw("operators_cann_ep")
    assert len(atc["operators"]) == 260
    assert len(atc["domains"]["npu"]) == 46
    assert len(lite["operators"]) == 123
    assert len(provider["operators"]) == 134
    assert len(provider["single_operator_mode"]) == 33
    assert len(shipped().cpu) > 60
    assert set(shipped().core) == FAMILIES
    assert all(len(kernels) > 150 for kernels in shipped().core.values())


@pytest.mark.parametrize("name", ["operators_atc", "operators_mindspore_lite", "operators_cann_ep", "kernels"])
def test_every_table_names_its_version_and_source(name: str) -> None:
    table = raw(name)
    assert table["version"]
    assert table.get("sources") or table["source"]


@pytest.mark.parametrize(
    ("op_type", "parsed", "unparsed"),
    [
        ("Conv", range(8, 19), (7, 19, 21)),
        ("LayerNormalization", (17, 18), (16, 19)),
        ("ReduceL2", (8, 17), (18,)),
        ("Upsample", (8, 16), (17,)),
        ("Mish", (18,), (17,)),
        ("HardSwish", (14, 18), (13,)),
        ("GridSample", (11, 16, 18), (12, 15)),
        ("Scatter", (9, 11), (12,)),
        ("MaxUnpool", (9, 11), (10,)),
    ],
)
def test_the_opset_of_the_model_must_match_exactly(op_type: str, parsed: range, unparsed: tuple[int, ...]) -> None:
    found = atc_operator(op_type)
    assert found is not None
    assert all(opset in found.opsets for opset in parsed)
    assert not any(opset in found.opsets for opset in unparsed)


@pytest.mark.parametrize(
    "op_type", ["QuantizeLinear", "GroupNormalization", "Loop", "Scan", "RNN", "Gelu", "RMSNormalization", "Attention"]
)
def test_what_atc_parses_at_no_opset(op_type: str) -> None:
    assert atc_operator(op_type) is None
    assert registered_since(op_type)


def test_domains_are_their_own() -> None:
    assert atc_operator("NPURmsNorm", "npu") is not None
    assert atc_operator("Conv", "npu") is None
    assert atc_operator("Conv", "ai.onnx") == atc_operator("Conv")


@pytest.mark.parametrize(
    ("op_type", "types"),
    [
        ("Conv", ("Conv2D", "Conv3D")),
        ("MatMul", ("BatchMatMulV2",)),
        ("Gemm", ("MatMulV2",)),
        ("Softmax", ("SoftmaxV2",)),
        ("LSTM", ("CommonLSTM", "DynamicRNN")),
        ("GlobalAveragePool", ("GlobalAveragePool", "ReduceMean")),
        ("Gelu", ("Gelu",)),
        ("NoSuchOperator", ()),
    ],
)
def test_ascend_types(op_type: str, types: tuple[str, ...]) -> None:
    assert ascend_types(op_type) == types


def test_no_type_is_left_at_the_parser_s_own_wrapper() -> None:
    assert not [name for name, row in raw("operators_atc")["operators"].items() if "PartitionedCall" in row["types"]]


def test_310p_multiplies_no_fp32() -> None:
    for ir_type in ("Conv2D", "Conv3D", "MatMulV2", "BatchMatMulV2"):
        on_310p, on_910b = kernel(ir_type, "Ascend310P"), kernel(ir_type, "ascend910b")
        assert on_310p is not None
        assert on_910b is not None
        assert (on_310p.takes("float32"), on_310p.takes("float16"), on_310p.mixed) == (False, True, "white")
        assert on_910b.takes("float32") is True
    assert cube_dtypes("Ascend310P") == {"float16", "int4", "int8"}
    assert "bfloat16" in (cube_dtypes("Ascend310B") or ())
    assert cube_dtypes("Ascend950") is None


def test_kernels_say_what_they_take() -> None:
    add, concat, pool = (kernel(name, "ascend310p") for name in ("Add", "ConcatD", "MaxPoolV3"))
    assert add is not None
    assert concat is not None
    assert pool is not None
    assert concat.takes("float32") is None  # decided when it is compiled
    assert (add.takes("float32"), add.takes("int32"), add.takes("int64"), add.takes("bfloat16")) == (
        True,
        True,
        False,
        False,
    )
    assert pool.takes("float16") is True
    assert pool.takes("float32") is False
    gather = kernel("GatherV2", "ascend310p")
    assert gather is not None
    assert gather.takes("int64", 1) is True
    assert gather.takes("float32", 9) is False  # the last row repeats
    assert kernel("NonMaxSuppressionV6", "ascend910b") is None
    assert kernel("NonMaxSuppressionV6", "ascend310p") is not None
    assert kernel("Conv2D", "ascend950") is None
    assert not shipped().knows("ascend950")


def test_the_ai_cpu() -> None:
    assert ai_cpu("ScatterElements")
    assert ai_cpu("Conv2D") is None


def test_passes_and_local_operators() -> None:
    assert "TopKV2" in lowered("TopK")
    assert lowered("Conv2D") == ()
    assert is_local("Reshape")
    assert not is_local("Add")


def test_mindspore_lite_2_0_0_knows_less_than_its_newer_sources() -> None:
    for op_type in ("HardSwish", "GRU", "GreaterOrEqual", "ArgMin", "Sign", "Scan"):
        assert not mindspore_lite_parses(op_type)
    for op_type in ("If", "LSTM", "LayerNormalization", "Gelu", "LessOrEqual", "Loop"):
        assert mindspore_lite_parses(op_type)
    newer = raw("operators_mindspore_lite")["only_newer"]
    assert len(newer) == 57
    assert not any(mindspore_lite_parses(name) for name in newer)
    assert not mindspore_lite_parses("Conv", "npu")
    assert tables_version("mindspore-lite") == "MindSpore Lite 2.0.0"


def test_the_cann_provider_s_list() -> None:
    assert cann_provider_takes("Conv")
    assert cann_provider_takes("HardSwish")
    for op_type in ("LayerNormalization", "GRU", "Einsum", "Trilu", "If"):
        assert not cann_provider_takes(op_type)
