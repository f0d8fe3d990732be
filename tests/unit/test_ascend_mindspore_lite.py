"""MindSpore Lite's adapter: options, dialects, and a child process that dies, hangs, lies or is not there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.ascend.mindir import read_stamp
from orchestrator.ascend.mindspore_lite import MindSporeLite, check_dialect
from orchestrator.ascend.mindspore_lite_options import AscendOptions
from orchestrator.core.errors import (
    DeviceError,
    EnvironmentFileError,
    GateError,
    InfraError,
    IntegrityError,
    OrchestratorError,
    PlanError,
)

HEAD = b"\x0a\x050.1.1\x12\x09MindSpore*\x052.0.0"


def fake(folder: Path, body: str) -> MindSporeLite:
    """A `python` that gets the work folder as its last argument, and counts its calls beside itself."""
    program = folder / "python"
    program.write_text(f'#!/bin/bash\ncd "$3"\necho call >>{folder}/calls\necho convert >stage\n{body}\n')
    program.chmod(0o755)
    return MindSporeLite(program)


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def onnx_file(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(b"the fakes read nothing")
    return path


def refused(folder: Path, body: str, **options: object) -> OrchestratorError:
    tool = fake(folder, body)
    with pytest.raises(OrchestratorError) as caught:
        tool.convert(onnx_file(folder), folder / "out.mindir", timeout_s=5, **options)  # pyright: ignore
    assert not (folder / "out.mindir").exists()
    return caught.value


def answer(text: str) -> str:
    return f"echo '{text}' >answer.json"


GOOD = r"printf '\n\0050.1.1\022\011MindSpore*\0052.0.0' >converted.mindir; chmod 400 converted.mindir;" + answer(
    '{"version": "2.0.0", "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 3]}],'
    ' "outputs": [{"name": "y", "dtype": "float32", "shape": [-1]}]}'
)


def test_a_death_by_a_signal_is_tried_once_more(tmp_path: Path) -> None:
    tool = fake(
        tmp_path, f"[ -e {tmp_path}/died ] || {{ touch {tmp_path}/died; kill -SEGV $$; }}; echo native text; {GOOD}"
    )
    (tmp_path / "deep").mkdir()
    converted = tool.convert(onnx_file(tmp_path), tmp_path / "deep" / "out.mindir", timeout_s=5)
    assert calls(tmp_path) == 2
    assert (tmp_path / "died").exists()
    assert converted.path.read_bytes() == HEAD
    assert os.access(converted.path, os.W_OK)
    assert converted.path.stat().st_mode & 0o777 == 0o644
    assert "native text" in converted.log
    assert (converted.producer, converted.version) == ("mindspore-lite", "2.0.0")
    assert (converted.stamp.producer, converted.stamp.version, converted.stamp.ir) == ("MindSpore", "2.0.0", "0.1.1")
    assert converted.inputs[0].shape == (-1, 3)
    assert [item.name for item in (tmp_path / "deep").iterdir()] == ["out.mindir"]


def test_two_deaths_are_an_error_with_the_log(tmp_path: Path) -> None:
    error = refused(tmp_path, "echo what it said; kill -ABRT $$")
    assert calls(tmp_path) == 2
    assert isinstance(error, GateError)
    assert error.details["reason"] == "crashed"
    assert error.details["signal"] == "SIGABRT"
    assert "what it said" in str(error.details["log"])


def test_a_death_with_given_shapes_blames_them(tmp_path: Path) -> None:
    error = refused(tmp_path, "kill -SEGV $$", shapes={"x": [1, 3]})
    assert error.details["reason"] == "input_shape_crash"
    assert "fix_shapes" in error.hint


def test_killed_for_memory_is_no_verdict_on_the_graph(tmp_path: Path) -> None:
    error = refused(tmp_path, "kill -KILL $$")
    assert isinstance(error, InfraError)
    assert error.details["reason"] == "killed"


def test_a_hang_ends_with_its_whole_group(tmp_path: Path) -> None:
    started = time.monotonic()
    tool = fake(tmp_path, f"sleep 60 & echo $! >{tmp_path}/grandchild; sleep 60")
    with pytest.raises(InfraError) as caught:
        tool.convert(onnx_file(tmp_path), tmp_path / "out.mindir", timeout_s=0.5)
    assert time.monotonic() - started < 3
    assert caught.value.details["reason"] == "timeout"
    assert caught.value.details["stage"] == "convert"
    grandchild = Path("/proc") / (tmp_path / "grandchild").read_text().strip()
    deadline = time.monotonic() + 2
    while grandchild.exists() and "Z" not in (grandchild / "stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the grandchild lives"
        time.sleep(0.02)


def test_all_unsupported_operators_are_collected(tmp_path: Path) -> None:
    log = "echo '... ConvertNodes] not support onnx data type GRU'; echo '... not support onnx data type HardSwish';"
    error = refused(tmp_path, log + answer('{"error": "RuntimeError: Converter model failed!"}'))
    assert error.details["ops"] == ["GRU", "HardSwish"]
    assert error.details["reason"] == "unsupported_ops"
    assert error.exit_code == 1


def test_element_types_are_not_taken_for_operators(tmp_path: Path) -> None:
    body = "echo '... not support onnx data type 16';" + answer('{"error": "RuntimeError: x"}')
    error = refused(tmp_path, body)
    assert error.details["reason"] == "unsupported_types"
    assert error.details["types"] == [16]


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("Parse] pooling op not support dilations now", "pool_dilations"),
        ("PopulateConvParameter] kernel_size/stride/dilation is nullptr", "conv_strides"),
        ("BuildCNode] outside_input_node should has data.", "captured_value"),
        ("gamma_tensor->ElementsNum() must be equal to channel", "instance_norm_rank"),
        ("Unsupported datatype from 34 to 30", "cast"),
        ("GetMindirDataType] Convert type error, unsupported type! 17", "loop_types"),
        ("something new", "convert_failed"),
    ],
)
def test_native_texts_become_reasons(tmp_path: Path, native: str, reason: str) -> None:
    log = f"echo '[ERROR] LITE(1,7f,python):2026-01-01 [mindspore/lite/a.cc:17] {native}';"
    error = refused(tmp_path, log + answer('{"error": "RuntimeError: Common error code."}'))
    assert error.details["reason"] == reason
    assert error.hint


def test_success_without_a_file_is_a_failure(tmp_path: Path) -> None:
    error = refused(tmp_path, "echo CONVERT RESULT SUCCESS:0;" + answer('{"missing": true}'))
    assert error.details["reason"] == "no_file"


def test_errors_in_the_log_of_a_success_are_no_failure(tmp_path: Path) -> None:
    tool = fake(tmp_path, f"echo '[ERROR] LITE(1) [a.cc:1] CheckPattern] activation type is not sigmoid'; {GOOD}")
    assert tool.convert(onnx_file(tmp_path), tmp_path / "out.mindir", timeout_s=5).built


def test_missing_cann_is_named_only_where_ascend_was_asked_for(tmp_path: Path) -> None:
    body = "echo 'libgraph.so: cannot open shared object file';" + answer(
        '{"error": "RuntimeError: NULL pointer returned"}'
    )
    error = refused(tmp_path, body, optimize="ascend_oriented")
    assert isinstance(error, DeviceError)
    assert error.details["reason"] == "cann_missing"
    assert isinstance(refused(tmp_path, body), GateError)


@pytest.mark.parametrize("body", ["exit 3", "true", "echo stage >stage; echo '{' >answer.json"])
def test_no_answer_blames_the_interpreter(tmp_path: Path, body: str) -> None:
    error = refused(tmp_path, body)
    assert isinstance(error, EnvironmentFileError)
    assert "tools.mindspore_lite_python" in error.hint


def test_interpreters_that_are_not_there_or_have_no_mindspore_lite(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFileError, match="No such file"):
        MindSporeLite(tmp_path / "nowhere").version()
    with pytest.raises(EnvironmentFileError, match="mindspore_lite"):
        MindSporeLite(Path(sys.executable)).version()


def test_names_that_it_cannot_read_are_refused_before_a_start(tmp_path: Path) -> None:
    tool = fake(tmp_path, GOOD)
    with pytest.raises(PlanError, match=r"\.onnx"):
        tool.convert(tmp_path / "model.pb", tmp_path / "out.mindir", timeout_s=5)
    with pytest.raises(PlanError, match=r"\.mindir"):
        tool.convert(onnx_file(tmp_path), tmp_path / "out.ms", timeout_s=5)
    with pytest.raises(PlanError, match="ascend_oriented"):
        tool.convert(onnx_file(tmp_path), tmp_path / "out.mindir", ascend=AscendOptions("fp16"), timeout_s=5)
    assert not (tmp_path / "calls").exists()


def test_the_child_gets_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("ASCEND_HOME_PATH", "/opt/cann")
    fake(tmp_path, f"env >{tmp_path}/env; {GOOD}").convert(onnx_file(tmp_path), tmp_path / "out.mindir", timeout_s=5)
    seen = (tmp_path / "env").read_text()
    assert "secret" not in seen
    assert "PYTHONPATH" not in seen
    assert "ASCEND_HOME_PATH=/opt/cann" in seen


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    slow = tmp_path / "mindspore_lite.py"
    slow.write_text("import os, time\nopen('../pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    wrapper = tmp_path / "python"
    start = f'import runpy, sys; sys.path.insert(0, "{tmp_path}"); del sys.argv[0]; runpy.run_path(sys.argv[0], None, "__main__")'
    wrapper.write_text(f"#!/bin/bash\nexec {sys.executable} -I -c '{start}' \"${{@:2}}\"\n")
    wrapper.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from orchestrator.ascend.mindspore_lite_process import call;"
        f"call(Path({str(wrapper)!r}), Path({str(tmp_path)!r}) / 'work', {{'action': 'version'}}, timeout_s=60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    pid_file = tmp_path / "work" / "pid"
    deadline = time.monotonic() + 20
    while not pid_file.exists() or not pid_file.read_text():
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.02)
    child = Path("/proc") / pid_file.read_text()
    assert child.exists()
    parent.kill()
    parent.wait()
    while child.exists() and (child / "stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the child lives"
        time.sleep(0.02)


def test_options_become_the_file_that_the_converter_reads() -> None:
    assert AscendOptions().to_config() == ""
    options = AscendOptions(
        precision="mixed_float16",
        input_format="ND",
        input_shape={"x": (-1, 3), "ids": (-1,)},
        dynamic_dims=((1, 1), (4, 4)),
    )
    assert options.to_config().splitlines() == [
        "[ascend_context]",
        "precision_mode=preferred_optimal",
        "input_format=ND",
        "input_shape=x:[-1,3];ids:[-1]",
        "dynamic_dims=[1,1],[4,4]",
    ]
    with pytest.raises(PlanError, match="mixed_bfloat16"):
        AscendOptions(precision="mixed_bfloat16").to_config()
    with pytest.raises(PlanError, match="both"):
        AscendOptions(dynamic_dims=((1,),)).to_config()
    with pytest.raises(PlanError, match="one line"):
        AscendOptions(fusion_switch_config_file=Path("a\n[b]")).to_config()


def test_the_dialect_of_mindspore_is_refused(tmp_path: Path) -> None:
    graph = b"\x3a\x80\x01" + bytes(128)
    (tmp_path / "lite.mindir").write_bytes(HEAD + graph + b"\x60\x01")
    assert check_dialect(tmp_path / "lite.mindir").mind_ir == 1
    (tmp_path / "ms.mindir").write_bytes(HEAD.replace(b"2.0.0", b"2.10.") + graph + b"\x60\x03")
    with pytest.raises(GateError, match="dialect 3") as caught:
        MindSporeLite(tmp_path / "never-started").run(tmp_path / "ms.mindir", [{}], timeout_s=5)
    assert caught.value.details["reason"] == "dialect"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\x0f",
        HEAD[:9],
        b"\x12\x09MindSpore",
        b"\xff" * 64,
        b"\x0a\x90\x4e" + b"0" * 10_000,
        HEAD + b"\x3a\x80\x80\x80\x80\x08",
        HEAD + b"\x0b",
    ],
)
def test_files_that_are_no_mindir(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.mindir").write_bytes(data)
    with pytest.raises(IntegrityError, match="no MindIR"):
        read_stamp(tmp_path / "x.mindir")
