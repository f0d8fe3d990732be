"""kill -9 at every fault point of the engine and the worker; the same command again ends as if nothing had happened."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.project import Project

from orchestrator.app import history
from orchestrator.app.wiring import open_workplace

QUIET = "environment: 1\ntracking: {uri: none}\nsites: {local: {kind: local, allow_cpu: true}}\n"
RECIPE = """
recipe: 1
name: noop
steps:
  - {name: first, entrypoint: "noop:write", params: {text: one}}
  - {name: second, entrypoint: "noop:join", needs: [first]}
"""
CODE = """
from pathlib import Path

def write(run):
    (Path(run.out) / "text").write_text(run.params["text"])

def join(run):
    (Path(run.out) / "text").write_text((Path(run.inputs["first"]) / "text").read_text() + " and two")
"""


def new_project(folder: Path) -> Project:
    project = Project(folder)
    project.write("recipe.yaml", RECIPE)
    project.write("noop.py", CODE)
    project.write("quiet.yaml", f"{QUIET}state: {folder}/.orchestrate\n")
    return project


def run(project: Project, **extra: str):
    return project.run("run", "recipe.yaml", "-e", "quiet.yaml", "--json", timeout_s=60, **extra)


def end_state(project: Project) -> dict[str, Any]:
    """All that a user can see of the end, but times and ids: what `status` shows, without starting it each time."""
    workplace = open_workplace(project.folder / "quiet.yaml")
    with workplace.look_into_ledger() as ledger:
        listed = history.executions(ledger, None, 10)
        if not listed:
            return {"executions": []}
        shown = history.execution(workplace, ledger, listed[0]["execution"])
    keys = ("step", "kind", "state", "action", "fingerprint", "outputs", "error")
    return {
        "executions": [row["state"] for row in listed],
        "steps": [{key: step[key] for key in keys} for step in shown["steps"]],
        "texts": sorted(
            path.read_text() for path in (project.folder / ".orchestrate").glob("store/artifacts/*/*/text")
        ),
    }


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """The end state without a crash, and each passing of a fault point as `name#count`, by process."""
    project = new_project(tmp_path_factory.mktemp("clean"))
    log = project.folder / "faults.log"
    done = run(project, ORCHESTRATE_FAULT_LOG=str(log))
    assert done.code == 0, done.err
    counts: dict[str, int] = {}
    points = []
    for name in log.read_text().split():
        counts[name] = counts.get(name, 0) + 1
        points.append(f"{name}#{counts[name]}")
    return end_state(project), points


@pytest.fixture(scope="module")
def reused(clean, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The end state when the same command is given again after a success."""
    project = new_project(tmp_path_factory.mktemp("reused"))
    assert [run(project).code, run(project).code] == [0, 0]
    return end_state(project)


def test_there_are_points_on_both_sides_of_every_write(clean):
    names = {point.partition("#")[0] for point in clean[1]}
    assert {
        "engine.begun",
        "engine.step.running.before",
        "engine.step.running.after",
        "engine.step.succeeded.before",
        "engine.step.succeeded.after",
        "engine.execution.succeeded",
        "worker.custom.before_run",
        "worker.custom.before_commit",
        "worker.custom.before_manifest",
        "worker.custom.after_manifest",
        "store.commit.sealed",
        "store.commit.published",
        "store.result.before",
        "store.result.after",
    } <= names


def test_kill_at_every_point_then_the_same_command(clean, reused, tmp_path: Path):
    expected, points = clean
    assert len(points) >= 25

    def kill(number: int) -> None:
        point, project = points[number], new_project(tmp_path / str(number))
        log = project.folder / "faults.log"
        first = run(project, ORCHESTRATE_FAULT=f"{point}:kill", ORCHESTRATE_FAULT_LOG=str(log))
        assert f"{point.partition('#')[0]} fired" in log.read_text(), f"{point} did not fire"
        had_succeeded = end_state(project)["executions"] == ["succeeded"]
        if first.code != 0:  # a killed worker is replaced at once, a killed orchestrator by the same command
            again = run(project)
            assert again.code == 0, f"after {point}: {again.out} {again.err}"
        after_success = had_succeeded and first.code != 0  # all was done and recorded: the command is a second run
        assert end_state(project) == (reused if after_success else expected), f"after {point}"

    with ThreadPoolExecutor(2) as pool:  # each kill has processes and a project of its own
        assert list(pool.map(kill, range(len(points)))) == [None] * len(points)


@pytest.mark.parametrize("action", ["raise", "term"])
def test_other_deaths_of_a_worker_are_retried_or_resumed(clean, tmp_path: Path, action: str):
    project = new_project(tmp_path)
    log = project.folder / "faults.log"
    run(project, ORCHESTRATE_FAULT=f"worker.custom.before_commit:{action}", ORCHESTRATE_FAULT_LOG=str(log))
    assert "worker.custom.before_commit fired" in log.read_text()
    assert run(project).code == 0
    assert end_state(project)["texts"] == clean[0]["texts"]
