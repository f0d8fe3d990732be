"""`orchestrate coverage` as a shell sees it: what it prints, its JSON, its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from support.zoo import ZOO

from orchestrator.cli.main import main

HIDDEN = ("ASCEND_OPP_PATH", "ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    for name in ("nested", "mlp", "groupnorm", "layernorm", "lstm"):
        onnx.save(ZOO[name]().model, folder / f"{name}.onnx")
    return folder


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Call = Callable[..., Done]


@pytest.fixture
def orchestrate(zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command line in this process: a start of Python and its libraries per call would be most of the time."""
    monkeypatch.chdir(zoo)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("orchestrator.ascend.installed._DEFAULT_HOMES", ())
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)

    def call(*args: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(["coverage", *args])
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return call


def test_as_a_program_of_its_own(zoo: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in HIDDEN}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "coverage", "nested.onnx", "--soc", "Ascend310P3", "--json"],
        cwd=zoo,
        env={**environment, "HOME": str(zoo)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["verdict"] == "blocked"


def test_blocked_exits_1_and_names_every_node(orchestrate: Call) -> None:
    done = orchestrate("nested.onnx", "--soc", "Ascend310P3")
    assert done.returncode == 1
    assert done.stdout.startswith("nested.onnx on Ascend310P3 by atc, fp16: blocked\n")
    assert "ATC has no parser for Loop at any opset" in done.stdout
    assert "loop/body/body/mod_1" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    again = orchestrate("nested.onnx", "--soc", "Ascend310P3", "--json")
    assert again.returncode == 1
    found = json.loads(again.stdout)
    assert found["verdict"] == "blocked"
    assert {(node["node"], node["path"]) for node in found["offending"]} == {("loop", ""), ("body/mod_1", "loop/body")}
    assert found["counts"]["blocked"] == 2


def test_ok_exits_0(orchestrate: Call) -> None:
    done = orchestrate("mlp.onnx", "--soc", "Ascend910B4")
    assert done.returncode == 0
    assert "6 nodes: 6 ok" in done.stdout
    assert "verdict" not in done.stdout  # no table of nothing


def test_prepare_covers_what_the_rewrites_leave(orchestrate: Call) -> None:
    args = ("layernorm.onnx", "--toolchain", "cann-ep", "--soc", "Ascend910B4")
    assert orchestrate(*args).returncode == 1
    done = orchestrate(*args, "--prepare", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["verdict"] == "ok"
    assert "decompose_layer_normalization" in [item["rewrite"] for item in found["prepared"]["applied"]]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("absent.onnx", "--soc", "Ascend310P3"), 2, "no file 'absent.onnx'"),
        (("mlp.onnx",), 2, "none was named"),
        (("mlp.onnx", "--soc", "310P3"), 2, "did you mean Ascend310P3"),
        (("mlp.onnx", "--soc", "Ascend310P3", "--shape", "N=2"), 2, "add --prepare"),
        (("mlp.onnx", "--soc", "Ascend310P3", "--prepare", "--shape", "NN=2"), 2, "did you mean N?"),
        (("mlp.onnx", "--soc", "Ascend310P3", "--toolchain", "gcc"), 2, "atc, mindspore-lite, cann-ep\n"),
        (("mlp.onnx", "--soc", "Ascend310P3", "--toolchain", "gcc", "--prepare"), 2, "mindspore-lite, cann-ep\n"),
        (("mlp.onnx", "--soc", "Ascend310P3", "--prepare", "--shape", "N=2", "--shape", "N=4"), 2, "'N' twice"),
    ],
)
def test_what_cannot_be_asked(orchestrate: Call, args: tuple[str, ...], code: int, says: str) -> None:
    done = orchestrate(*args)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


def test_what_a_run_would_make_of_a_blocked_graph_is_said(zoo: Path, orchestrate: Call) -> None:
    model = onnx.load(zoo / "mlp.onnx")
    del model.opset_import[:]
    model.opset_import.add(domain="", version=20)
    onnx.save(model, zoo / "new.onnx")
    done = orchestrate("new.onnx", "--soc", "Ascend310P3")
    assert done.returncode == 1
    assert "with --prepare, as every run does: ok (" in done.stdout
    assert " ".join(done.stdout.split()).count("ATC reads models up to opset 18") == 1
    assert "6 nodes" in done.stdout
    assert json.loads(orchestrate("new.onnx", "--soc", "Ascend310P3", "--json").stdout)["with_prepare"].endswith("ok)")
    assert not orchestrate("mlp.onnx", "--soc", "Ascend310P3").stdout.count("--prepare")


def test_the_old_910b_is_taken_with_a_note(orchestrate: Call) -> None:
    done = orchestrate("mlp.onnx", "--soc", "Ascend910B")
    assert done.returncode == 0
    assert "note: Ascend910B is the 910 of the first generation" in done.stdout
    assert "generation" not in orchestrate("mlp.onnx", "--soc", "Ascend910B4").stdout


def test_help_has_examples(orchestrate: Call) -> None:
    done = orchestrate("--help")
    assert done.returncode == 0
    assert "orchestrate coverage model.onnx --soc Ascend310P3" in done.stdout
