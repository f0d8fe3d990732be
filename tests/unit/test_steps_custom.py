"""A recipe's own steps, and how the user's errors come out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import UserCodeError
from orchestrator.steps import custom
from orchestrator.steps.api import SiteInfo, StepContext, StepResult
from orchestrator.steps.user_code import load_entrypoint

CODE = """
from orchestrator import user

def collect(run: user.StepRun) -> None:
    text = (run.inputs["raw"] / "a.txt").read_text()
    (run.out / "b.txt").write_text(text * run.params.times)
    run.log(rows=3)
    run.progress(1, 1)

def nothing(run):
    pass

def fails(run):
    return {}["digit"]

def leaves(run):
    raise SystemExit("no more disk")
"""


class Heard:
    def __init__(self) -> None:
        self.metrics: list[tuple[str, float, int]] = []

    def progress(self, done: float, total: float, text: str = "") -> None: ...

    def metric(self, name: str, value: float, step: int = 0) -> None:
        self.metrics.append((name, value, step))

    def message(self, text: str) -> None: ...


def run(folder: Path, spec: dict[str, Any], heard: Heard | None = None) -> StepResult:
    (folder / "steps_of_mine.py").write_text(CODE)
    (folder / "raw").mkdir(exist_ok=True)
    (folder / "raw" / "a.txt").write_text("ab")
    out = folder / f"out-{time.monotonic_ns()}"
    out.mkdir()
    site, inputs = SiteInfo("local", True, folder), {"raw": folder / "raw"}
    return custom.run(StepContext("own", "custom", spec, folder, inputs, folder, out, site, 1, heard or Heard()))


def test_a_function_gets_inputs_params_and_a_folder(tmp_path: Path) -> None:
    heard = Heard()
    done = run(tmp_path, {"entrypoint": "steps_of_mine:collect", "params": {"times": 2}}, heard)
    assert (done.outputs["files"].folder / "b.txt").read_text() == "abab"
    assert done.metrics == {"rows": 3.0}
    assert heard.metrics == [("rows", 3.0, 0)]


def test_a_program_gets_the_same_by_its_environment(tmp_path: Path) -> None:
    code = (
        "import json, os, pathlib\n"
        "raw = pathlib.Path(json.loads(os.environ['ORCHESTRATE_INPUTS_JSON'])['raw'])\n"
        "times = json.loads(os.environ['ORCHESTRATE_PARAMS'])['times']\n"
        "pathlib.Path(os.environ['ORCHESTRATE_OUT'], 'b.txt').write_text((raw / 'a.txt').read_text() * times)\n"
    )
    done = run(tmp_path, {"command": [sys.executable, "-c", code], "params": {"times": 3}})
    assert (done.outputs["files"].folder / "b.txt").read_text() == "ababab"


def test_the_users_exception_comes_out_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match=r"steps_of_mine:fails failed: KeyError: 'digit'") as error:
        run(tmp_path, {"entrypoint": "steps_of_mine:fails"})
    line = CODE.splitlines().index('    return {}["digit"]') + 1
    assert error.value.place == f"{tmp_path}/steps_of_mine.py:{line}"
    assert "KeyError" in str(error.value.details["traceback"])
    with pytest.raises(UserCodeError, match="no more disk"):
        run(tmp_path, {"entrypoint": "steps_of_mine:leaves"})


def test_a_failed_program_says_its_code_and_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match=r"ended with code 7: out of rows") as error:
        run(tmp_path, {"command": [sys.executable, "-c", "import sys; sys.stderr.write('out of rows'); sys.exit(7)"]})
    assert error.value.details["exit_code"] == 7
    with pytest.raises(UserCodeError, match="there is no program 'no-such-program'"):
        run(tmp_path, {"command": "no-such-program --x"})


def test_a_missing_function_names_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match="has no function 'colect'") as error:
        run(tmp_path, {"entrypoint": "steps_of_mine:colect"})
    assert "collect, nothing, fails, leaves" in error.value.hint
    (tmp_path / "torn.py").write_text("def f(:\n")
    with pytest.raises(UserCodeError, match="SyntaxError") as torn:
        load_entrypoint("torn:f", tmp_path)
    assert torn.value.place == f"{tmp_path}/torn.py:1"


def test_a_step_that_does_nothing_costs_less_than_20_ms(tmp_path: Path) -> None:
    run(tmp_path, {"entrypoint": "steps_of_mine:nothing"})
    best = 1.0
    for _ in range(5):
        began = time.perf_counter()
        run(tmp_path, {"entrypoint": "steps_of_mine:nothing"})
        best = min(best, time.perf_counter() - began)
    assert best < 0.020


def test_modules_of_one_recipe_do_not_leak_into_the_next(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.py").write_text(f"NAME = {name!r}\n")
        (tmp_path / name / "whole.py").write_text("import part\ndef name():\n    return part.NAME\n")
    assert load_entrypoint("whole:name", tmp_path / "a")() == "a"
    assert load_entrypoint("whole:name", tmp_path / "b")() == "b"
    assert str(tmp_path / "a") not in sys.path
