"""ATC's process contract against the fake: success only when proved, every fault ends in its own error, nothing survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from support.fake_atc import FakeAtc

from orchestrator.ascend.atc import Atc, Compiled
from orchestrator.ascend.atc_install import find_atc
from orchestrator.ascend.atc_options import AtcOptions, make
from orchestrator.core.errors import GateError, InternalError, OrchestratorError, PlanError, RetryClass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    node = helper.make_node("Relu", ["image"], ["logits"], name="block/gelu")
    node.metadata_props.add(key="source", value="model.py:12")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value("image", TensorProto.FLOAT, ["batch", 3])],
        [value("logits", TensorProto.FLOAT, ["batch", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def options(model: Path, **more: object) -> AtcOptions:
    fields = {"model": model, "output": "unused", "soc_version": "Ascend310P3", "input_shape": "image:1,3"}
    return make({**fields, **more})


def compile_with(
    tmp_path: Path, model: Path, *behaviours: str, timeout_s: float = 30, **more: object
) -> tuple[FakeAtc, Compiled]:
    fake = FakeAtc.install(tmp_path / "cann", *behaviours)
    install = find_atc(str(fake.program), {})
    assert install is not None
    out = tmp_path / "out"
    made = Atc(install).compile(
        options(model, **more), out, work=tmp_path / "work", inputs=("image",), timeout_s=timeout_s,
        source_of=lambda node: "model.py:12" if node == "block/gelu" else "",
    )  # fmt: skip
    return fake, made


def refused(tmp_path: Path, model: Path, *behaviours: str, timeout_s: float = 30) -> tuple[FakeAtc, OrchestratorError]:
    with pytest.raises(OrchestratorError) as caught:
        compile_with(tmp_path, model, *behaviours, timeout_s=timeout_s)
    assert caught.value.retry is RetryClass.NEVER, "our own attempts are used up"
    assert not list((tmp_path / "out").glob("*.om")) if (tmp_path / "out").exists() else True
    return FakeAtc(tmp_path / "cann"), caught.value


def test_success_in_a_private_place(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "very-secret-token")
    monkeypatch.setenv("ASCEND_SLOG_PRINT_TO_STDOUT", "1")
    fake, made = compile_with(tmp_path, model, "ok")
    (start,) = fake.starts()
    assert made.model == tmp_path / "out" / "model.om"
    assert made.model.read_bytes().startswith(b"IMOD")
    assert made.version == "8.1.RC1:8.1.RC1"
    assert made.host == ""
    env = start["env"]
    assert env["HOME"].startswith(str(tmp_path / "work"))
    assert env["ASCEND_WORK_PATH"].startswith(str(tmp_path / "work"))
    assert env["ASCEND_CACHE_PATH"].startswith(str(tmp_path / "work"))
    assert start["cwd"].startswith(str(tmp_path / "work"))
    assert env["FAKE_CANN"] == "yes", "set_env.sh was sourced"
    assert env["SECRETS"] == ""
    assert "ASCEND_SLOG_PRINT_TO_STDOUT" not in env
    assert made.warnings == ()
    assert not Path("fusion_result.json").exists()
    assert fake.alive() == []


@pytest.mark.parametrize(
    ("behaviour", "more", "host"),
    [
        ("ok_arch", {}, f"linux_{os.uname().machine}"),
        ("ok_arch", {"host_env_os": "linux", "host_env_cpu": "aarch64"}, "linux_aarch64"),
    ],
)
def test_name_with_architecture(
    tmp_path: Path, model: Path, behaviour: str, more: dict[str, object], host: str
) -> None:
    _, made = compile_with(tmp_path, model, behaviour, **more)
    assert made.host == host
    assert made.model.name == "model.om"


def test_late_warnings_are_kept_and_no_failure(tmp_path: Path, model: Path) -> None:
    fake, made = compile_with(tmp_path, model, "ok_warnings")
    assert fake.faults() == ["ok_warnings"]
    assert any("W11001" in line for line in made.warnings)


def test_weights_travel_with_the_model(tmp_path: Path, model: Path) -> None:
    _, made = compile_with(tmp_path, model, "ok_weights", external_weight=1)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in made.files] == ["model.om", "weight/part_0"]


def test_slow_start_and_ticks(tmp_path: Path, model: Path) -> None:
    fake = FakeAtc.install(tmp_path / "cann", "slow_start")
    install = find_atc(str(fake.program), {})
    assert install is not None
    ticks: list[float] = []
    Atc(install).compile(
        options(model), tmp_path / "out", work=tmp_path / "work", on_tick=lambda elapsed, _: ticks.append(elapsed)
    )
    assert fake.faults() == ["slow_start"]
    assert ticks


def test_children_never_survive_a_success(tmp_path: Path, model: Path) -> None:
    fake, _ = compile_with(tmp_path, model, "leaves_children")
    assert fake.faults() == ["leaves_children"]
    assert len(fake.fired[-1]["pids"]) == 2
    assert fake.alive() == []


def test_hang_is_ended_with_all_its_children_and_tried_once_more(tmp_path: Path, model: Path) -> None:
    fake, error = refused(tmp_path, model, "hang", timeout_s=0.7)
    assert fake.faults() == ["hang", "hang"]
    assert isinstance(error, InternalError)
    assert "0.7 s, 2 times" in error.message
    assert fake.alive() == []
    assert [row["outcome"] for row in error.details["attempts"]] == ["hang", "hang"]  # pyright: ignore


def test_a_hang_that_passes(tmp_path: Path, model: Path) -> None:
    fake, made = compile_with(tmp_path, model, "hang", "ok", timeout_s=1.5)
    assert fake.faults() == ["hang"]
    assert [attempt.outcome for attempt in made.attempts] == ["hang", "ok"]
    assert fake.alive() == []


@pytest.mark.parametrize("behaviour", ["segv", "segv_code", "abort"])
def test_a_crash_is_not_tried_again_and_leaves_its_traces(tmp_path: Path, model: Path, behaviour: str) -> None:
    fake, error = refused(tmp_path, model, behaviour)
    assert fake.faults() == [behaviour]
    assert isinstance(error, InternalError)
    assert "crashed" in error.message
    logs = Path(error.place)
    assert "ATC start working" in (logs / "stdout.log").read_text()
    if behaviour == "abort":
        assert "terminate called" in (logs / "stderr.log").read_text()
    command = json.loads((logs.parent / "command.json").read_text())["command"]
    assert command[0].endswith("/bin/atc")
    assert "--soc_version=Ascend310P3" in command


@pytest.mark.parametrize("behaviour", ["oom", "oom_code", "E10044"])
def test_out_of_memory_is_tried_once_with_one_compiler(tmp_path: Path, model: Path, behaviour: str) -> None:
    fake, error = refused(tmp_path, model, behaviour)
    assert fake.faults() == [behaviour, behaviour]
    assert "TE_PARALLEL_COMPILER" not in fake.starts()[0]["env"]
    assert fake.starts()[1]["env"]["TE_PARALLEL_COMPILER"] == "1"
    assert isinstance(error, InternalError)
    assert "out of memory 2 times" in error.message


def test_out_of_memory_that_passes(tmp_path: Path, model: Path) -> None:
    fake, made = compile_with(tmp_path, model, "oom", "ok")
    assert fake.faults() == ["oom"]
    assert made.model.exists()


@pytest.mark.parametrize("behaviour", ["no_file", "zero_bytes", "text_only", "no_text"])
def test_half_a_success_is_a_failure(tmp_path: Path, model: Path, behaviour: str) -> None:
    fake, error = refused(tmp_path, model, behaviour)
    assert fake.faults() == [behaviour]
    assert isinstance(error, InternalError)


def test_a_stale_file_is_never_taken(tmp_path: Path, model: Path) -> None:
    for folder in (tmp_path / "work/atc-1/out", tmp_path / "out"):
        folder.mkdir(parents=True)
        (folder / "model.om").write_bytes(b"of an earlier run")
    with pytest.raises(InternalError, match=r"left no \.om"):
        compile_with(tmp_path, model, "no_file")
    assert FakeAtc(tmp_path / "cann").faults() == ["no_file"]
    assert (tmp_path / "out/model.om").read_bytes() == b"of an earlier run", "an earlier result is not touched"


def test_each_unsupported_node_is_named_with_its_line(tmp_path: Path, model: Path) -> None:
    fake, error = refused(tmp_path, model, "unsupported")
    assert fake.faults() == ["unsupported"]
    assert isinstance(error, GateError)
    rows = error.details["nodes"]
    assert [(r["node"], r["op_type"], r["opset"], r["source"]) for r in rows] == [  # pyright: ignore
        ("block/gelu", "Gelu", 20, "model.py:12"),
        ("block/norm", "GroupNormalization", 21, ""),
    ]
    assert error.place == "model.py:12"
    assert "coverage" in error.hint
    assert "block/norm (GroupNormalization)" in error.message


def test_report_without_a_code(tmp_path: Path, model: Path) -> None:
    fake, error = refused(tmp_path, model, "silent_report")
    assert fake.faults() == ["silent_report"]
    assert isinstance(error, GateError)
    assert "twice" in error.message


@pytest.mark.parametrize(
    ("code", "family", "says"),
    [
        ("E10001", PlanError, "oo_level"),
        ("E10016", PlanError, "pixels"),
        ("E13010", GateError, "block/gelu (Gelu) at model.py:12"),
        ("E19010", GateError, "E19010, today E13010"),
        ("EZ9010", GateError, "block/gelu (Gelu) at model.py:12"),
        ("EZ3002", GateError, "No kernel"),
        ("EZ3003", GateError, "block/norm (GroupNorm)"),
        ("E10501", GateError, "block/swish (Swish)"),
        ("E19999", InternalError, "opp version"),
        ("E40020", InternalError, "Python module is missing"),
        ("EE9X", InternalError, "E17777"),
        ("no_code", InternalError, "gave no code"),
        ("garbage", InternalError, "E19999"),
        ("garbage_report", GateError, "block/gelu"),
    ],
)
def test_codes_become_whose_error_it_is(
    tmp_path: Path, model: Path, code: str, family: type[OrchestratorError], says: str
) -> None:
    fake, error = refused(tmp_path, model, code)
    assert fake.faults() == [code], "fired once: what ATC refuses is not tried again"
    assert type(error) is family
    assert says in error.message
    assert error.hint
    json.dumps(error.to_json())
    if code == "E19999":
        assert any("the real cause" in line for line in error.details["plog"])  # pyright: ignore


def test_huge_output_is_capped(tmp_path: Path, model: Path) -> None:
    fake, made = compile_with(tmp_path, model, "huge")
    assert fake.faults() == ["huge"]
    log = made.attempts[0].ended.stdout
    assert log.stat().st_size < 4 << 20
    assert "left out" in log.read_text()
    assert "ATC run success" in log.read_text()


def test_wrong_input_name_reaches_the_user(tmp_path: Path, model: Path) -> None:
    with pytest.raises(PlanError, match=r"E10016.*pixels") as caught:
        compile_with(tmp_path, model, "ok", input_shape="pixels:1,3")
    assert "coverage" in caught.value.hint


def test_nothing_survives_when_we_are_killed(tmp_path: Path, model: Path) -> None:
    fake = FakeAtc.install(tmp_path / "cann", "hang")
    code = (
        "import sys; from pathlib import Path\n"
        "from orchestrator.ascend.atc import Atc; from orchestrator.ascend.atc_install import find_atc\n"
        "from orchestrator.ascend.atc_options import make\n"
        "m, p, t = map(Path, sys.argv[1:])\n"
        "o = make({'model': m, 'output': 'x', 'soc_version': 'Ascend310P3', 'input_shape': 'image:1,3'})\n"
        "Atc(find_atc(str(p), {})).compile(o, t / 'out', work=t / 'work', timeout_s=60)\n"
    )
    us = subprocess.Popen([sys.executable, "-c", code, str(model), str(fake.program), str(tmp_path)])
    deadline = time.monotonic() + 20
    while not fake.faults() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert fake.faults() == ["hang"]
    assert len(fake.alive()) == 3, "the program and two children, one in a session of its own"
    os.kill(us.pid, signal.SIGKILL)
    us.wait()
    while fake.alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert fake.alive() == []


def test_finding_it(tmp_path: Path) -> None:
    fake = FakeAtc.install(tmp_path / "cann")
    found = find_atc(None, {"ASCEND_TOOLKIT_HOME": str(fake.folder)})
    assert found is not None
    assert found.program == fake.program
    assert found.set_env is None, "who set the variables has sourced a set_env.sh already"
    on_path = find_atc(None, {"PATH": str(fake.program.parent)})
    assert on_path is not None
    assert on_path.set_env == fake.folder / "set_env.sh"
    assert find_atc(None, {"PATH": str(tmp_path)}) is None
    with pytest.raises(InternalError, match="no program here"):
        find_atc(str(tmp_path / "absent"), {})


def test_broken_set_env(tmp_path: Path, model: Path) -> None:
    fake = FakeAtc.install(tmp_path / "cann")
    (fake.folder / "set_env.sh").write_text("return 3\n")
    install = find_atc(str(fake.program), {})
    assert install is not None
    with pytest.raises(InternalError, match=r"set_env\.sh failed"):
        Atc(install).compile(options(model), tmp_path / "out", work=tmp_path / "work")
    assert fake.starts() == []
