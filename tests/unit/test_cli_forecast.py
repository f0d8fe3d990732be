from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

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
