"""ATC's options: every exclusion is said before it starts, with place, value and the way out; texts are exactly ATC's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.ascend.atc_checks import check, check_for_target, most_gears
from orchestrator.ascend.atc_files import aipp_text, fusion_text, op_precision_text, write_files
from orchestrator.ascend.atc_options import AtcOptions, make, option_names, options_from_texts
from orchestrator.ascend.atc_report import check_result, findings, warnings_after_success
from orchestrator.ascend.cann_provider import OPTIONS, provider_options
from orchestrator.ascend.error_codes import explain, explain_acl
from orchestrator.ascend.gears import buckets, plan_shapes
from orchestrator.core.errors import PlanError, UsageError
from orchestrator.graph.spec import TensorSpec
from orchestrator.recipe.compile_options import Aipp, CompileOptions, OpPrecision


def options(soc: str = "Ascend310P3", **more: Any) -> AtcOptions:
    return make({"model": "/m/model.onnx", "output": "/o/model", "soc_version": soc, **more})


GEARS = {"input_shape": "x:-1,3", "dynamic_batch_size": (1, 4)}
AIPP = {"input": "image"}


@pytest.mark.parametrize(
    ("soc", "fields", "option", "says"),
    [
        ("Ascend310P3", {**GEARS, "dynamic_dims": ((1,), (2,))}, "dynamic_dims", "exclude each other"),
        ("Ascend310P3", {**GEARS, "dynamic_image_size": ((1, 2), (3, 4))}, "dynamic_image_size", "exclude each other"),
        ("Ascend310P3", {**GEARS, "input_shape_range": "x:[1~4,3]"}, "input_shape_range", "exclude each other"),
        ("Ascend310P3", {**GEARS, "input_shape": "x:-1,1~3"}, "input_shape", "exclude each other"),
        ("Ascend310P3", {**GEARS, "dynamic_batch_size": (4,)}, "dynamic_batch_size", "has 1 gears"),
        ("Ascend310P3", {**GEARS, "dynamic_batch_size": tuple(range(1, 102))}, "dynamic_batch_size", "has 101 gears"),
        ("Ascend310P3", {**GEARS, "dynamic_batch_size": (2, 2)}, "dynamic_batch_size", "twice"),
        ("Ascend310P3", {**GEARS, "input_shape": "x:1,3"}, "input_shape", "no -1"),
        ("Ascend310P3", {"input_shape": "x:-1,-1", "dynamic_dims": ((1,), (2,))}, "dynamic_dims", "2 times -1"),
        ("Ascend310P3", {"input_shape": "x:-1", "dynamic_dims": ((1,), (2,)), "input_format": "NCHW"}, "input_format", "ND"),
        ("Ascend310P3", {"input_shape": "x:1,3,-1,-1", "dynamic_image_size": ((1, 2), (3, 4)), "input_format": "ND"}, "input_format", "NCHW"),
        ("Ascend310P3", {"input_shape": "x:-1", "dynamic_dims": ((1,), (2,)), "aipp": (AIPP,)}, "insert_op_conf", "AIPP"),
        ("Ascend310P3", {"precision_mode": "force_fp16", "precision_mode_v2": "fp16"}, "precision_mode", "exclude"),
        ("Ascend310P3", {"precision_mode_v2": "fp16", "modify_mixlist": "/m.json"}, "modify_mixlist", "mixed modes"),
        ("Ascend310P3", {"precision_mode_v2": "origin", "keep_dtype": "/k"}, "keep_dtype", "no effect"),
        ("Ascend310P3", {"precision_mode_v2": "mixed_bfloat16"}, "precision_mode_v2", "no bfloat16"),
        ("Ascend910A", {"precision_mode": "allow_mix_precision_bf16"}, "precision_mode_v2", "no bfloat16"),
        ("Ascend910B4", {"precision_mode_v2": "cube_hif8"}, "precision_mode_v2", "HiF8"),
        ("Ascend310P3", {"aipp": (AIPP,), "insert_op_conf": "/a"}, "aipp", "exclude"),
        ("Ascend310P3", {"aipp": (AIPP,), "input_fp16_nodes": ("image",)}, "input_fp16_nodes", "UINT8"),
        ("Ascend310P3", {"insert_op_conf": "/a", "input_fp16_nodes": ("image",)}, "input_fp16_nodes", "UINT8"),
        ("Ascend310P3", {"aipp": (AIPP, AIPP)}, "aipp", "another input"),
        ("Ascend310P3", {"out_nodes": ("a:0", "logits")}, "out_nodes", "mixes"),
        ("Ascend310P3", {"out_nodes": ("a:0",), "output_types": {"b:0": "FP16"}}, "output_types", "out_nodes does not"),
        ("Ascend310P3", {"output_type": "HIF8"}, "output_type", "no output of type"),
        ("Ascend910B4", {"status_check": True}, "status_check", "does not exist"),
        ("Ascend310P3", {"allow_hf32": True}, "allow_hf32", "no HF32"),
        ("Ascend310B1", {"input_shape": "x:1~4,3"}, "ranges", "no ranges"),
        ("Ascend310B1", {"input_shape": "x:-1,3"}, "input_shape", "without gears"),
        ("Ascend310P3", {"op_precision": {"by_type": {"Exp": "high_precision"}}, "op_precision_mode": "/p"}, "op_precision", "exclude"),
    ],
)  # fmt: skip
def test_exclusions(soc: str, fields: dict[str, Any], option: str, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        check(options(soc, **fields))
    error = caught.value
    assert error.place == f"--{option}"
    assert says in error.message
    assert error.hint
    assert any(problem["option"] == option for problem in error.details["problems"])  # pyright: ignore


@pytest.mark.parametrize(
    ("soc", "fields"),
    [
        ("Ascend310P3", {**GEARS, "status_check": True}),
        ("Ascend910B4", {"precision_mode_v2": "mixed_bfloat16", "modify_mixlist": "/m", "allow_hf32": True}),
        ("Ascend310B1", {"precision_mode_v2": "mixed_bfloat16", **GEARS}),
        ("Ascend950PR_9599", {"precision_mode_v2": "cube_hif8", "output_type": "HIF8"}),
        ("Ascend950PR_9599", {**GEARS, "dynamic_batch_size": tuple(range(1, 257))}),
        ("Ascend310P3", {"input_shape": "x:1~4,3"}),
        ("Ascend310P3", {"aipp": (AIPP,), "input_fp16_nodes": ("other",)}),
    ],
)
def test_what_fits_passes(soc: str, fields: dict[str, Any]) -> None:
    assert all(not complaint.error for complaint in check(options(soc, **fields)))


def test_warnings_are_no_errors() -> None:
    said = check(options(**{**GEARS, "dynamic_batch_size": (1, 4096), "op_select_implmode": "high_precision"}))
    assert {item.option for item in said} == {"dynamic_batch_size", "op_select_implmode"}
    assert most_gears("Ascend310P3") == 100


def test_all_problems_at_once() -> None:
    with pytest.raises(PlanError, match="and 2 more") as caught:
        check(
            options(
                "Ascend310P3",
                status_check=True,
                allow_hf32=True,
                precision_mode_v2="mixed_bfloat16",
                output_type="HIF8",
            )
        )
    assert len(caught.value.details["problems"]) == 3  # pyright: ignore


def test_command_is_a_list_of_exact_words() -> None:
    words = options(
        input_shape="a:-1,3;b:", dynamic_dims=((1, 2), (3, 4)), out_nodes=("n:0", "m:1"), output_types={"n:0": "FP16"},
        allow_hf32=False, is_weight_clip=False, aicore_num="24|48", optypelist_for_implmode=("Exp", "Log"),
        op_select_implmode="high_precision", deterministic=True,
    ).command(Path("/cann/bin/atc"))  # fmt: skip
    assert words[:5] == ["/cann/bin/atc", "--mode=0", "--framework=5", "--model=/m/model.onnx", "--output=/o/model"]
    assert {
        "--input_shape=a:-1,3;b:", "--dynamic_dims=1,2;3,4", "--out_nodes=n:0;m:1", "--output_type=n:0:FP16",
        "--allow_hf32=false", "--is_weight_clip=0", "--aicore_num=24|48", "--optypelist_for_implmode=Exp,Log",
        "--deterministic=1",
    } <= set(words)  # fmt: skip


@pytest.mark.parametrize("value", ["-rf", "--soc_version=x", "a\nb", "a'b", 'a"b', "$(x)", "`x`", "a\\b", "\x00"])
def test_values_that_could_be_something_else(value: str) -> None:
    for field in ({"input_shape": value}, {"out_nodes": [value]}, {"aicore_num": value}, {"input_fp16_nodes": [value]}):
        with pytest.raises(UsageError):
            options(**field)


def test_a_model_path_that_looks_like_an_option() -> None:
    with pytest.raises(UsageError, match="cannot be the value"):
        make({"model": "-x.onnx", "output": "o", "soc_version": "Ascend310P3"}).command(Path("atc"))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(option_names()), st.text(max_size=12), max_size=4))
def test_any_text_is_an_option_or_an_error(texts: dict[str, str]) -> None:
    try:
        words = options(**options_from_texts(texts)).command(Path("/atc"))
    except UsageError:
        return
    assert all(word.startswith("--") and "=" in word for word in words[1:])


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError):
        CompileOptions.model_validate({"banana": 1})
    assert CompileOptions.model_validate(
        CompileOptions.model_validate({"oo_level": "O1"}).model_dump(mode="json")
    ).given() == {"oo_level": "O1"}
    assert all(field.description for field in AtcOptions.model_fields.values())


@pytest.mark.parametrize(
    ("fields", "format_", "soc", "place"),
    [
        ({"oo_level": "O1"}, "mindir", "Ascend310P3", "targets.npu.compile.oo_level"),
        ({"oo_level": "O1"}, "onnx", "Ascend310P3", "targets.npu.compile.oo_level"),
        ({"cann_provider": {}}, "om", "Ascend310P3", "targets.npu.compile.cann_provider"),
        ({"status_check": True}, "om", "Ascend910B4", "targets.npu.compile.status_check"),
        ({"ranges": {"batch": [1, 8]}}, "om", "Ascend310B4", "targets.npu.compile.ranges"),
    ],
)
def test_recipe_options_are_checked_at_plan_time(fields: dict[str, Any], format_: str, soc: str, place: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_for_target(CompileOptions.model_validate(fields), soc_version=soc, format_=format_, target="npu")
    assert caught.value.place == place
    fine = CompileOptions.model_validate({"timeout": "5m"})
    check_for_target(fine, soc_version=soc, format_=format_, target="npu")


IMAGE = (TensorSpec("image", "float32", ("batch", 3, "h", "w")),)
TEXT = (TensorSpec("ids", "int64", ("batch", "words")), TensorSpec("mask", "int64", ("batch", "words")))


def test_gears_of_the_batch() -> None:
    found = plan_shapes(TEXT, {"batch": [1, 4, 16], "words": [128]})
    assert found.options == {"input_shape": "ids:-1,128;mask:-1,128", "dynamic_batch_size": (1, 4, 16)}
    assert buckets(TEXT, found)[1] == {"ids": [4, 128], "mask": [4, 128]}


def test_gears_of_several_dimensions() -> None:
    found = plan_shapes(TEXT, {"batch": [1, 2], "words": [8, 16]})
    assert found.options["input_format"] == "ND"
    assert found.options["dynamic_dims"] == ((1, 8, 1, 8), (1, 16, 1, 16), (2, 8, 2, 8), (2, 16, 2, 16))
    assert found.options["input_shape"] == "ids:-1,-1;mask:-1,-1"
    check(options(**found.options))


def test_gears_of_pictures() -> None:
    found = plan_shapes(IMAGE, {"batch": [1], "h": [224], "w": [224]})
    assert found.options == {"input_shape": "image:1,3,224,224"}
    pictures = plan_shapes(IMAGE, {"batch": [1], "h": [224, 320], "w": [224]}, pictures=True)
    assert "dynamic_dims" in pictures.options
    pair = plan_shapes(IMAGE, {"batch": [1], "h": [224, 320], "w": [224, 320]}, pictures=True)
    assert pair.options["dynamic_image_size"] == ((224, 224), (224, 320), (320, 224), (320, 320))
    check(options(**pair.options, aipp=(AIPP,)))


def test_ranges_and_scalars() -> None:
    inputs = (*IMAGE, TensorSpec("scale", "float32", ()))
    found = plan_shapes(inputs, {"h": [8], "w": [8]}, {"batch": (1, 10)})
    assert found.options == {"input_shape": "image:1~10,3,8,8;scale:"}
    assert plan_shapes((TensorSpec("x", "float32", (1, 3)),), {"batch": [4]}).options == {}


@pytest.mark.parametrize(
    ("shapes", "ranges", "says"),
    [
        ({"batch": [1]}, {}, "'words' varies"),
        ({"bach": [1, 2], "words": [8]}, {}, "no size called 'bach'"),
        ({"batch": [1, 2]}, {"words": (1, 2)}, "one or the other"),
        ({"batch": [1], "words": [8]}, {"batch": (1, 2)}, "values and a range"),
        ({"batch": [0], "words": [8]}, {}, "at least 1"),
        ({"batch": list(range(1, 40)), "words": list(range(1, 40))}, {}, "1521 gears"),
    ],
)
def test_shapes_that_cannot_be(shapes: dict[str, list[int]], ranges: dict[str, tuple[int, int]], says: str) -> None:
    with pytest.raises(PlanError, match=says) as caught:
        plan_shapes(TEXT, shapes, ranges)
    assert caught.value.hint


def test_names_with_separators() -> None:
    with pytest.raises(PlanError, match="separators"):
        plan_shapes((TensorSpec("a;b", "float32", ("n",)),), {"n": [1, 2]})


def test_aipp_file() -> None:
    entry = Aipp.model_validate({
        "input": "image", "input_format": "YUV420SP_U8", "src_image_size_w": 256, "src_image_size_h": 240,
        "crop": [16, 8, 224, 224], "matrix": [256, 0, 359, 256, -88, -183, 256, 454, 0], "input_bias": [0, 128, 128],
        "mean_chn": [124, 117, 104], "var_reci_chn": [0.0171, 0.0175, 0.0174], "rbuv_swap_switch": True,
    })  # fmt: skip
    lines = aipp_text((entry,), ("other", "image")).splitlines()
    assert lines[0] == "aipp_op {"
    assert lines[-1] == "}"
    assert {
        "    aipp_mode: static", "    related_input_rank: 1", "    crop: true", "    load_start_pos_w: 16",
        "    crop_size_h: 224", "    csc_switch: true", "    matrix_r1c1: -88", "    input_bias_2: 128",
        "    mean_chn_0: 124", "    var_reci_chn_2: 0.0174", "    rbuv_swap_switch: true",
    } <= set(lines)  # fmt: skip
    dynamic = Aipp.model_validate({"aipp_mode": "dynamic", "max_src_image_size": 1000000})
    assert aipp_text((dynamic,), ("image",)).count(":") == 3
    with pytest.raises(PlanError, match="has not"):
        aipp_text((entry,), ("ids",))


@pytest.mark.parametrize(
    "fields",
    [
        {"aipp_mode": "dynamic"},
        {"src_image_size_w": 4},
        {"src_image_size_w": 8, "src_image_size_h": 8, "crop": [4, 4, 8, 8]},
        {"padding": [-1, 0, 0, 0]},
        {"input_bias": [0, 0, 0]},
        {"matrix": [1, 2]},
        {"csc": True},
    ],
)
def test_aipp_that_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Aipp.model_validate(fields)


def test_files_beside_the_model(tmp_path: Path) -> None:
    wanted = options(
        aipp=({},),
        fusion_off=("ConvFusion",),
        op_precision={"by_type": {"Exp": "high_precision"}, "by_node": {"n": "keep_fp16"}},
    )
    ready = write_files(wanted, tmp_path, inputs=("image",))
    assert ready.op_precision_mode is not None
    assert ready.op_precision_mode.read_text() == "[ByOpType]\nExp=high_precision\n[ByNodeName]\nn=keep_fp16\n"
    words = ready.command(Path("atc"))
    assert f"--insert_op_conf={tmp_path}/aipp.cfg" in words
    assert f"--fusion_switch_file={tmp_path}/fusion_switch.cfg" in words
    assert json.loads(fusion_text(("ALL",)))["Switch"]["UBFusion"] == {"ALL": "off"}
    assert fusion_text(("A", "B")) == "A:off\nB:off\n"
    with pytest.raises(PlanError, match="INI"):
        op_precision_text(OpPrecision.model_validate({"by_node": {"a=b": "keep_fp16"}}))


def test_codes_of_both_numberings() -> None:
    old, new = explain("E19010"), explain("E13010")
    assert (old.today, new.today) == ("E13010", "E13010")
    assert old.cause == new.cause != ""
    assert old.kind == "graph"
    unknown = explain("E17777")
    assert (unknown.known, unknown.kind) == (False, "internal")
    assert explain("E10054").kind == "option"


def test_every_explained_code_says_what_to_do() -> None:
    from orchestrator.ascend.error_codes import _data  # pyright: ignore[reportPrivateUsage]

    own = {code: row for code, row in _data()["atc"].items() if "kind" in row}
    assert len(own) >= 60
    assert all(row["title"] and row["cause"] and row["fix"] for row in own.values())
    assert all(set(row) <= {"class", "title", "same_as"} for code, row in _data()["atc"].items() if code not in own)
    assert len(_data()["atc"]) > 540
    assert len(_data()["acl"]) > 250


def test_acl_errors() -> None:
    assert explain_acl(145013).fix.startswith("Pad")
    assert explain_acl(100000).name == "ACL_ERROR_INVALID_PARAM"
    assert explain_acl(599999).meaning == "Internal error."


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("E19010: No parser is registered for Op [a/b, optype [Gelu]].", [("a/b", "Gelu")]),
        ("E13010: No operator plugin is registered for Op: a/b, optype: Gelu.", [("a/b", "Gelu")]),
        ("EZ3003: No supported Ops kernel and engine are found for [a/b], optype [X].", [("a/b", "X")]),
        ("EZ3002: Optype [Conv2D] of Ops kernel [AIcoreEngine] is unsupported.", [("", "Conv2D")]),
        ("E16002: No ONNX parser is registered for optype Gelu.", [("", "Gelu")]),
        ("EZ0007: OP[a/b] x has incorrect dtype", [("a/b", "")]),
        ("E70003: In op[a/b], the dtype of input[x] should be float16", [("a/b", "")]),
        ("E10501: IR for Op a/b with optype Swish is not registered.", [("a/b", "Swish")]),
        ("Resource_Error(EE1023): streams", [("", "")]),
        ("a sentence without a code", []),
    ],
)
def test_nodes_in_texts(text: str, nodes: list[tuple[str, str]]) -> None:
    assert [(item.node, item.op_type) for item in findings(text)] == nodes


def test_damaged_reports(tmp_path: Path) -> None:
    path = tmp_path / "check_result.json"
    for content in (b"", b"[]", b'{"op": 3}', b'{"op": [1, {"result": "failed"}]}', b'{"op": [' * 5000):
        path.write_bytes(content)
        assert all(row.node == "" for row in check_result(path))
    assert check_result(tmp_path / "absent") == ()
    assert warnings_after_success("ATC run success, welcome\n...\n\nW1: slow\n") == ("W1: slow",)
    assert warnings_after_success("ATC run failed") == ()


def test_provider_options_are_those_it_knows() -> None:
    asked = CompileOptions.model_validate({"cann_provider": {"npu_mem_limit": 1 << 30, "enable_cann_graph": False}})
    found = provider_options(asked, "origin")
    assert found["precision_mode"] == "must_keep_origin_dtype"
    assert found["enable_cann_graph"] == "0"
    assert set(found) <= OPTIONS
    with pytest.raises(PlanError, match="no precision"):
        provider_options(asked, "fp8")
    with pytest.raises(ValidationError):
        CompileOptions.model_validate({"cann_provider": {"precision_mode_v2": "fp16"}})
