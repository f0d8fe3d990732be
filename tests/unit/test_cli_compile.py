"""`orchestrate compile` on files of the user's: the exact command, the result, and whose error it is."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.fake_atc import FakeAtc

from orchestrator.app.compile import CompileRequest, way_out
from orchestrator.cli.main import main

SIZES = ("--shape", "batch=1", "--shape", "words=16")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    value = helper.make_tensor_value_info
    node = helper.make_node("Add", ["ids", "mask"], ["y"], name="add")
    node.metadata_props.add(key="source", value="net.py:7")
    shape = ["batch", "words"]
    graph = helper.make_graph(
        [node],
        "g",
        [value(name, TensorProto.FLOAT, shape) for name in ("ids", "mask")],
        [value("y", TensorProto.FLOAT, shape)],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH"):
        monkeypatch.delenv(name, raising=False)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["compile", *map(str, arguments)])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code, out, _ = call(capsys, *arguments, "--json")
    return code, json.loads(out)


def test_dry_run_prints_the_exact_command(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    (tmp_path / "keep.cfg").write_text("add\n")
    more = ("--option", "oo_level=O1", "--option", "is_weight_clip=0", "--keep", tmp_path / "keep.cfg", "--dry-run")
    code, out, err = call(
        capsys, model, "--soc", "Ascend310P3", "--shape", "batch=1,4", "--shape", "words=16", "--out", "o", *more
    )
    assert code == 0
    command = shlex.split(out)
    assert command == [
        "atc", "--mode=0", "--framework=5", f"--model={model}", f"--output={tmp_path}/o/model", "--soc_version=Ascend310P3",
        "--input_shape=ids:-1,16;mask:-1,16", "--dynamic_batch_size=1,4", "--precision_mode_v2=fp16",
        f"--keep_dtype={tmp_path}/keep.cfg", "--is_weight_clip=0", "--oo_level=O1",
        f"--check_report={tmp_path}/o/check_result.json",
    ]  # fmt: skip
    assert "no ATC here" in err
    assert not (tmp_path / "o").exists()


def test_compiles(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    fake = FakeAtc.install(tmp_path / "cann", "ok_arch")
    arguments = ("--soc", "Ascend310P3", "--shape", "batch=1", "--shape", "words=8,16", "--atc", fake.program)
    code, made = answer(capsys, model, *arguments, "--option", "host_env_os=linux", "--option", "host_env_cpu=aarch64")
    assert code == 0
    assert [Path(f["path"]).as_posix() for f in made["files"]] == ["net.Ascend310P3.om/model.om"]
    assert made["facts"]["host"] == "linux_aarch64"
    assert made["gears"] == [{"words": 8}, {"words": 16}]
    argv = fake.starts()[0]["argv"]
    assert {"--dynamic_dims=8,8;16,16", "--input_format=ND", "--input_shape=ids:1,-1;mask:1,-1"} <= set(argv)
    assert json.loads((tmp_path / "net.Ascend310P3.om/compile.json").read_text())["runtime"] == "om"
    code, out, _ = call(
        capsys, model, "--soc", "Ascend310P3", "--input-shape", "ids:1,4;mask:1,4", "--atc", fake.program
    )
    assert code == 0
    assert "loads on linux_x86_64 only" in out or "loads on linux_aarch64 only" in out


def test_the_prepared_graph_is_kept_and_the_dry_run_names_it(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    fake = FakeAtc.install(tmp_path / "cann")
    arguments = (model, "--soc", "Ascend310P3", *SIZES, "--prepare", "--out", "o", "--atc", fake.program)
    code, out, err = call(capsys, *arguments, "--dry-run")
    graph = tmp_path / "o/graph/model.onnx"
    assert (code, f"prepared graph: {Path('o/graph/model.onnx')}" in err, fake.starts()) == (0, True, [])
    assert [dim.dim_value for dim in onnx.load(graph).graph.input[0].type.tensor_type.shape.dim] == [1, 16]
    shown = shlex.split(out)
    assert f"--model={graph}" in shown
    graph.unlink()
    code, made = answer(capsys, *arguments)
    assert (code, made["graph"], graph.is_file()) == (0, "o/graph/model.onnx", True)
    assert [Path(file["path"]).as_posix() for file in made["files"]] == ["o/model.om"]
    ran = fake.starts()[0]["argv"]
    places = ("--output=", "--check_report=")  # private until the .om is proved
    assert [word for word in ran if not word.startswith(places)] == [
        word for word in shown[1:] if not word.startswith(places)
    ]
    assert [word.partition("=")[0] for word in ran] == [word.partition("=")[0] for word in shown[1:]]


def test_a_missing_compiler_says_what_to_install(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    for kind, says in (("om", "--atc"), ("mindir", "tools.mindspore_lite_python"), ("onnx", "tools.onnxruntime_cann")):
        code, error = answer(capsys, model, "--soc", "Ascend310P3", *SIZES, "--format", kind)
        assert code == 3
        assert error["hint"].startswith("install CANN on this machine and source its set_env.sh")
        assert says in error["hint"]
        assert ("--atc" in error["hint"]) is (kind == "om")


def test_the_cpu_form_of_a_mindir_is_named_with_its_path(model: Path, tmp_path: Path) -> None:
    request = CompileRequest(
        model, "mindir", "Ascend310P3", "fp16", {}, "", {}, None, tmp_path, {"mindspore_lite_python": "python"}, None
    )
    assert "CPU form" not in way_out(request)
    (tmp_path / "model.mindir").touch()
    assert way_out(request).endswith(f"; the CPU form is {tmp_path / 'model.mindir'}")


def test_the_list_of_nodes_is_held_against_graph_and_soc(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    keep = tmp_path / "keep.cfg"
    common = (model, "--soc", "Ascend310P3", *SIZES, "--keep", keep, "--dry-run")
    keep.write_text("# mine\nadd\nOpType::Cast\n")
    assert answer(capsys, *common)[1]["warnings"] == []
    keep.write_text("add\nadd_1\nrelu\n")
    code, error = answer(capsys, *common)
    assert (code, error["message"]) == (2, "2 of the 3 nodes to keep are not in the graph: add_1, relu")
    assert error["hint"].startswith("did you mean add? ")
    assert "add --prepare" in error["hint"]
    assert "of this graph" in answer(capsys, *common, "--prepare")[1]["hint"]
    code, error = answer(capsys, *common[:-2], tmp_path)
    assert (code, "no keep_dtype.cfg" in error["message"]) == (2, True)


def test_a_node_without_a_float32_kernel_cannot_be_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), helper.make_node("Relu", ["c"], ["y"], name="r")]
    value = helper.make_tensor_value_info
    ends = ([value("x", TensorProto.FLOAT, [1, 3, 8, 8])], [value("y", TensorProto.FLOAT, [1, 4, 6, 6])])
    made = helper.make_model(
        helper.make_graph(nodes, "g", *ends, [weights]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(made, tmp_path / "conv.onnx")
    (tmp_path / "keep.cfg").write_text("conv\nr\n")
    common = ("conv.onnx", "--keep", "keep.cfg", "--dry-run", "--soc")
    said = answer(capsys, *common, "Ascend310P3")[1]["warnings"]
    assert said == ["--keep: Ascend310P3 has no float32 kernel of Conv: it cannot keep conv"]
    assert answer(capsys, *common, "Ascend910B4")[1]["warnings"] == []
    assert answer(capsys, *common, "Ascend910B")[1]["warnings"][-1].startswith("Ascend910B is the 910 of the first")


def test_a_folder_of_a_forecast(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    fake = FakeAtc.install(tmp_path / "cann")
    (tmp_path / "forecast").mkdir()
    (tmp_path / "forecast/keep_dtype.cfg").write_text("add\n")
    (tmp_path / "forecast/modify_mixlist.json").write_text('{"black-list": {"to-add": ["Add"]}}')
    sizes = ("--shape", "batch=1", "--shape", "words=16")
    code, _ = answer(
        capsys,
        model,
        "--soc",
        "Ascend310P3",
        *sizes,
        "--precision",
        "mixed_float16",
        "--keep",
        "forecast",
        "--atc",
        fake.program,
    )
    assert code == 0
    argv = " ".join(fake.starts()[0]["argv"])
    assert "--keep_dtype=" in argv
    assert "--modify_mixlist=" in argv


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--soc", "Ascend310P4", *SIZES), 2, "unknown SoC"),
        (("--soc", "Ascend310P3"), 2, "'batch' varies"),
        (("--soc", "Ascend310P3", *SIZES, "--shape", "height=8"), 2, "no size called 'height'"),
        (("--soc", "Ascend310P3", *SIZES, "--shape", "batch=2"), 2, "'batch' twice"),
        (("--soc", "Ascend310P3", "--shape", "batch=1", "--shape", "words=" + "9" * 30), 2, "a size is at least 1"),
        (("--soc", "Ascend310P3", "--input-shape", "garbage"), 2, "not NAME:SIZE"),
        (("--soc", "Ascend310P3", "--input-shape", "ids:1,16"), 2, "'mask' varies and is left out"),
        (("--soc", "Ascend310P3", "--input-shape", "x:1,16;ids:1,16;mask:1,16"), 2, "no input 'x'"),
        (("--soc", "Ascend310P3", "--input-shape", "ids:1,16;mask:1,16,2"), 2, "not [1, 16, 2]"),
        (("--soc", "Ascend310P3", "--input-shape", "ids:1,0;mask:1,16"), 2, "not [1, 0]"),
        (("--soc", "Ascend310P3", "--input-shape", "ids:1,1~16;mask:1,16"), 3, "no ATC on this site"),
        (("--soc", "Ascend310P3", *SIZES, "--option", "banana=1"), 2, "no option 'banana'"),
        (("--soc", "Ascend310P3", *SIZES, "--option", "oo_level=O9"), 2, "oo_level"),
        (("--soc", "Ascend310P3", *SIZES, "--option", "keep_dtype=absent"), 2, "no such file"),
        (("--soc", "Ascend310P3", *SIZES, "--option", "oo_level"), 2, "NAME=VALUE"),
        (("--soc", "Ascend310P3", *SIZES, "--precision", "fp8"), 2, "no precision"),
        (("--soc", "Ascend310P3", *SIZES, "--format", "exe"), 2, "no format"),
        (("--soc", "Ascend310P3", *SIZES, "--timeout", "soon"), 2, "not a duration"),
        (("--soc", "Ascend310P3", *SIZES, "--format", "mindir", "--option", "oo_level=O1"), 2, "options of ATC"),
        (("--soc", "Ascend910B4", *SIZES, "--option", "status_check=1"), 2, "status_check does not exist"),
        (("--soc", "Ascend310P3", *SIZES, "--keep", "absent"), 2, "no file 'absent'"),
        (("--soc", "Ascend310P3", *SIZES), 3, "no ATC on this site"),
        (("--soc", "Ascend310P3", *SIZES, "--format", "onnx"), 3, "onnxruntime-cann"),
        (("--soc", "Ascend310P3", *SIZES, "--format", "mindir", "--dry-run"), 2, "no command of its own"),
    ],
)
def test_refusals(
    capsys: pytest.CaptureFixture[str],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    found, error = answer(capsys, model, *arguments)
    assert (found, says in error["message"]) == (code, True), error
    assert error["hint"] or error["place"]


def test_a_refused_graph_names_node_and_line(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    fake = FakeAtc.install(tmp_path / "cann", "E13010")
    code, error = answer(capsys, model, "--soc", "Ascend310P3", *SIZES, "--atc", fake.program)
    assert fake.faults() == ["E13010"]
    assert (code, error["error"]) == (1, "GateError")
    assert error["details"]["nodes"][0]["node"] == "block/gelu"
