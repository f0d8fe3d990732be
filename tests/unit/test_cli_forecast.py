from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from orchestrator.cli.main import main
from tests.support.zoo import ZOO, ZooGraph


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ZooGraph:
    graph = ZOO["overflow_trap"]()
    monkeypatch.chdir(tmp_path)
    onnx.save(graph.model, tmp_path / "model.onnx")
    np.savez(tmp_path / "real.npz", **graph.samples)
    return graph


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["forecast", *arguments])
    return int(ended.value.code or 0), capsys.readouterr().out


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out = run(capsys, *arguments, "--json")
    return code, json.loads(out)


def test_a_no_exits_1_and_names_the_nodes(trap: ZooGraph, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = answer(
        capsys, "model.onnx", "--soc", "Ascend310P3", "--samples", "real.npz", "--keep", "none",
    )  # fmt: skip
    assert (code, found["verdict"], found["status"]) == (1, "no", "uncalibrated")
    assert set(found["offending_nodes"]) <= {node.name for node in trap.model.graph.node}
    assert found["offending_nodes"]
    assert found["first_bad"]["cumulative"]


def test_with_the_list_it_passes_and_writes_its_files(trap: ZooGraph, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(
        capsys, "model.onnx", "--soc", "Ascend310P3", "--samples", "real.npz", "--out", "made", "--html", "page.html",
    )  # fmt: skip
    assert code == 0
    assert "ok (uncalibrated" in out
    assert "keep (must)" in out
    assert Path("made/keep_dtype.cfg").read_text().strip()
    assert Path("page.html").read_text().startswith("<!doctype html>")


def test_samples_and_metrics_come_from_callables(trap: ZooGraph, capsys: pytest.CaptureFixture[str]) -> None:
    name = next(iter(trap.samples))
    Path("forecast_data.py").write_text(
        "import numpy as np\n"
        f"X = np.load('real.npz')['{name}']\n"
        f"def samples(n):\n    for row in X[:n]:\n        yield {{'{name}': row[None]}}\n"
        "def evaluate(predict):\n"
        f"    y = predict({{'{name}': X}})['y']\n"
        "    return {'finite': float(np.isfinite(y).mean())}\n"
    )
    code, found = answer(
        capsys, "model.onnx", "--soc", "Ascend910B4", "--samples", "forecast_data:samples", "--samples-count", "2",
        "--evaluate", "forecast_data:evaluate",
    )  # fmt: skip
    assert code == 0
    assert found["samples"] == min(2, len(trap.samples[name]))
    assert found["before"]["task"]["finite"] < 1.0
    assert found["after"]["task"]["finite"] == 1.0


def test_without_samples_it_can_only_warn(trap: ZooGraph, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "model.onnx", "--soc", "Ascend310P3")
    assert code == 0
    assert "warn" in out
    assert "SYNTHETIC" in out


def test_a_limit_that_is_missed_is_a_no(trap: ZooGraph, capsys: pytest.CaptureFixture[str]) -> None:
    graph = ZOO["mlp"]()
    onnx.save(graph.model, "clean.onnx")
    np.savez("clean.npz", **graph.samples)
    given = ("clean.onnx", "--soc", "Ascend310P3", "--samples", "clean.npz", "--keep", "none")
    assert answer(capsys, *given)[1]["verdict"] == "ok"
    code, found = answer(capsys, *given, "--min-sqnr-db", "200")
    assert (code, found["verdict"]) == (1, "no")
    assert any("asked 200 dB" in reason for reason in found["reasons"])
    code, found = answer(capsys, *given, "--min-cosine", "1")
    assert (code, found["verdict"]) == (1, "no")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: np.where(np.arange(len(x))[:, None] == 1, np.nan, x), "sample 1: input '{name}' has NaN"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 0, np.inf, x), "sample 0: input '{name}' has infinity"),
        (lambda x: x[:, :-1], "axis 1"),
        (lambda x: x.astype(np.int64), "int64"),
    ],
)
def test_wrong_samples_of_a_file_are_named(
    trap: ZooGraph, capsys: pytest.CaptureFixture[str], change: Callable[[Any], Any], text: str
) -> None:
    (name,) = trap.samples
    np.savez("wrong.npz", **{name: change(trap.samples[name])})
    code, found = answer(capsys, "model.onnx", "--samples", "wrong.npz")
    assert (code, found["error"]) == (2, "UsageError")
    assert found["message"].startswith("wrong.npz: ")
    assert text.format(name=name) in found["message"]
    assert "recipe" not in found["hint"]


@pytest.mark.parametrize("content", [b"", b"no archive", "npy"])
def test_a_file_that_is_no_npz_is_a_usage_error(
    trap: ZooGraph, capsys: pytest.CaptureFixture[str], content: bytes | str
) -> None:
    with Path("odd.npz").open("wb") as file:
        np.save(file, np.zeros(3)) if isinstance(content, str) else file.write(content)
    code, found = answer(capsys, "model.onnx", "--samples", "odd.npz")
    assert code == 2
    assert "odd.npz" in found["message"]


def test_a_module_that_is_not_there_says_where_it_is_looked_for(
    trap: ZooGraph, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, found = answer(capsys, "model.onnx", "--samples", "no_such_module_here:samples")
    assert (code, found["place"]) == (2, "")
    assert str(tmp_path) in found["message"]
    assert "no_such_module_here.py" in found["hint"]
    Path("failing_data.py").write_text("def samples(n):\n    raise ValueError('boom')\n")
    code, found = answer(capsys, "model.onnx", "--samples", "failing_data:samples")
    assert code == 6
    assert found["place"].endswith("failing_data.py:2")
    assert "steps" not in found["hint"]


def test_a_file_in_fp16_is_refused_by_name(trap: ZooGraph, capsys: pytest.CaptureFixture[str]) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["N", 4])
    graph = helper.make_graph([helper.make_node("Exp", ["x"], ["y"], name="exp")], "half", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), "half.onnx")
    code, found = answer(capsys, "half.onnx")
    assert code == 1
    assert found["message"] == "half.onnx is in fp16 already; a forecast needs the same model in fp32"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("absent.onnx",), 2),
        (("model.onnx", "--soc", "Ascend999"), 2),
        (("model.onnx", "--soc", "Ascend310P3", "--precision", "mixed_bfloat16"), 2),
        (("model.onnx", "--samples", "absent.npz"), 2),
        (("model.onnx", "--samples", "nothing"), 2),
        (("model.onnx", "--keep", "no_such_node", "--samples", "real.npz"), 2),
        (("model.onnx", "--accumulate", "bf16"), 2),
        (("model.onnx", "--min-cosine", "2"), 2),
        (("model.onnx", "--min-sqnr-db", "nan"), 2),
        (("real.npz",), 1),
    ],
)
def test_what_is_wrong_has_the_right_exit_code(
    trap: ZooGraph, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int
) -> None:
    found, body = answer(capsys, *arguments)
    assert found == code, body
    assert body["hint"]
