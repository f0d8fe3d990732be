"""Executions as a user meets them on the command line, with steps that cost nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from support.project import Project

QUIET = "environment: 1\ntracking: {uri: none}\nsites: {local: {kind: local, allow_cpu: true}}\n"
CODE = """
import os, signal, sys, time
from pathlib import Path

def write(run):
    (Path(run.out) / "text").write_text(str(run.params.get("text", "hello")))

def slow(run):
    Path(run.params["flag"]).write_text("running")
    time.sleep(60)

def fail(run):
    raise ValueError("the user's own mistake")

def dies_twice(run):
    marks = Path(run.params["marks"])
    with marks.open("a") as file:
        file.write("x")
    if len(marks.read_text()) < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    (Path(run.out) / "text").write_text("third time")

def chatty(run):
    print("said on stdout")
    os.write(2, b"said by native code\\n")
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write("code.py", "")
    made.write("own.py", CODE)
    made.write("quiet.yaml", QUIET)
    return made


def recipe(project: Project, *steps: str, name: str = "own") -> None:
    project.write("recipe.yaml", f"recipe: 1\nname: {name}\nsteps:\n" + "".join(f"  - {step}\n" for step in steps))


def run(project: Project, *arguments: str, **extra: str):
    return project.run("run", "recipe.yaml", "-e", "quiet.yaml", "--json", *arguments, **extra)


def ask(project: Project, *arguments: str):
    done = project.run(*arguments, "-e", "quiet.yaml", "--json")
    assert done.code == 0, done.err + done.out
    return done.result


def actions(done) -> dict[str, str]:
    return {step["step"]: step["action"] for step in done.result["steps"]}


def test_nothing_changed_is_reused_and_changes_are_named(project: Project):
    recipe(
        project, '{name: a, entrypoint: "own:write", params: {text: one}}', '{name: b, command: ["true"], needs: [a]}'
    )
    assert run(project).code == 0
    second = run(project)
    assert actions(second) == {"a": "REUSE", "b": "REUSE"}
    project.write("own.py", CODE + "\n# touched\n")
    plan = ask(project, "plan", "recipe.yaml")
    assert [(s["action"], s["reason"]) for s in plan["steps"]] == [("RUN", "own.py changed"), ("RUN*", "a runs first")]
    third = run(project)
    assert actions(third) == {"a": "RUN", "b": "REUSE"}, "the same bytes came out, so b need not run"
    assert "own.py changed" in str(third.result["steps"])
    refreshed = run(project, "--refresh", "b")
    assert actions(refreshed) == {"a": "REUSE", "b": "RUN"}


def test_a_damaged_artifact_is_no_hit(project: Project):
    recipe(project, '{name: a, entrypoint: "own:write"}')
    assert run(project).code == 0
    (text,) = (project.folder / ".orchestrate").glob("store/artifacts/*/*/text")
    text.chmod(0o644)
    text.write_text("hullo")
    again = run(project)
    assert again.code == 0
    assert actions(again) == {"a": "RUN"}
    assert text.read_text() == "hello"


def test_the_users_mistake_is_shown_with_its_line_and_not_retried(project: Project):
    recipe(project, '{name: a, entrypoint: "own:fail"}')
    done = run(project)
    assert done.code == 6
    assert done.result["error"] == "UserCodeError"
    assert "the user's own mistake" in done.result["message"]
    assert "own.py" in str(done.result)
    shown = ask(project, "status", ask(project, "status")["executions"][0]["execution"])
    assert shown["state"] == "failed"
    assert [a["state"] for a in shown["attempts"]] == ["failed"]


def test_a_worker_that_dies_is_retried_within_its_budget(project: Project):
    marks = project.folder / "marks"
    recipe(project, f'{{name: a, entrypoint: "own:dies_twice", params: {{marks: "{marks}"}}}}')
    done = run(project)
    assert done.code == 3, "own steps have one further attempt for infrastructure"
    assert "killed by signal 9" in done.result["message"]
    execution = ask(project, "status")["executions"][0]["execution"]
    resumed = project.run("resume", execution, "-e", "quiet.yaml", "--json")
    assert resumed.code == 0, resumed.err
    assert marks.read_text() == "xxx"
    attempts = ask(project, "status", execution)["attempts"]
    assert [a["state"] for a in attempts] == ["failed", "failed", "succeeded"]
    assert [a["retry_class"] for a in attempts] == ["infra", "infra", None]


def test_a_time_out_ends_the_step(project: Project):
    flag = project.folder / "flag"
    recipe(project, f'{{name: a, entrypoint: "own:slow", params: {{flag: "{flag}"}}, timeout: 1s}}')
    began = time.monotonic()
    done = run(project)
    assert done.code == 3
    assert "longer than its time-out of 1 s" in done.result["message"]
    assert time.monotonic() - began < 15
    assert flag.exists()


def start_slow(project: Project):
    flag = project.folder / "flag"
    recipe(
        project,
        '{name: quick, command: ["true"]}',
        f'{{name: slow, entrypoint: "own:slow", params: {{flag: "{flag}"}}, needs: [quick]}}',
    )
    process = project.start("run", "recipe.yaml", "-e", "quiet.yaml", "--json")
    wait_for(flag.exists)
    return process


def wait_for(condition, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def make_slow_quick(project: Project) -> None:
    """The same recipe, so the same execution; only the code no longer sleeps."""
    project.write("own.py", CODE.replace("time.sleep(60)", "pass"))


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(project: Project):
    process = start_slow(project)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped by SIGINT" in out
    (row,) = ask(project, "status")["executions"]
    assert row["state"] == "interrupted"
    make_slow_quick(project)
    done = run(project)
    assert done.code == 0
    assert done.result["execution"] == row["execution"]
    assert actions(done)["quick"] == "RUN", "this execution ran it, before the interruption"


def test_cancel_from_another_terminal_then_resume(project: Project):
    process = start_slow(project)
    execution = ask(project, "status")["executions"][0]["execution"]
    assert ask(project, "cancel", execution)["state"] == "cancelled"
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert ask(project, "status", execution)["state"] == "cancelled"
    make_slow_quick(project)
    assert project.run("resume", execution, "-e", "quiet.yaml").code == 0
    again = project.run("cancel", execution, "-e", "quiet.yaml", "--json")
    assert (again.code, "is succeeded already" in again.out) == (2, True)


def test_cancel_settles_an_execution_whose_process_is_gone(project: Project):
    process = start_slow(project)
    process.kill()
    process.wait()
    execution = ask(project, "status")["executions"][0]["execution"]
    assert "its process is gone" in ask(project, "status")["executions"][0]["state"]
    assert ask(project, "cancel", execution)["state"] == "cancelled"


def test_two_runs_of_one_recipe(project: Project):
    first = start_slow(project)
    refused = run(project, "--no-wait")
    assert refused.code == 4
    assert refused.result["error"] == "Conflict"
    assert f"pid {first.pid}" in refused.result["message"]
    second = project.start("run", "recipe.yaml", "-e", "quiet.yaml", "--json")
    line = second.stdout.readline()
    assert "being run by" in line
    assert f"pid {first.pid}" in line
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=30)
    wait_for(lambda: "running" in str(ask(project, "status")["executions"][0]["state"]))
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=30)
    assert second.returncode == 130


def test_kill_9_leaves_no_worker_behind(project: Project):
    process = start_slow(project)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))


def test_logs_hold_what_python_and_native_code_printed(project: Project):
    recipe(project, '{name: a, entrypoint: "own:chatty"}')
    assert run(project).code == 0
    done = project.run("logs", "-e", "quiet.yaml", "--step", "a")
    assert "said on stdout" in done.out
    assert "said by native code" in done.out


def test_the_log_of_a_step_that_failed_ends_with_why(project: Project):
    recipe(project, '{name: a, entrypoint: "own:fail"}')
    assert run(project).code == 6
    done = project.run("logs", "-e", "quiet.yaml", "--step", "a")
    assert "a failed: " in done.out
    assert "the user's own mistake" in done.out


def test_lineage_goes_back_from_a_digest_to_the_execution(project: Project):
    recipe(
        project,
        '{name: a, entrypoint: "own:write"}',
        '{name: b, entrypoint: "own:write", params: {text: x}, needs: [a]}',
    )
    execution = run(project).result["execution"]
    steps = {s["step"]: s for s in ask(project, "status", execution)["steps"]}
    a, b = steps["a"]["outputs"]["files"], steps["b"]["outputs"]["files"]
    back = ask(project, "lineage", b[7:20])
    assert [x["digest"] for x in back["artifacts"]] == [b, a]
    assert back["executions"][0]["execution"] == execution
    forward = ask(project, "lineage", a)
    assert [x["digest"] for x in forward["used_by"]] == [b]
    unknown = project.run("lineage", "nosuchthing", "-e", "quiet.yaml", "--json")
    assert (unknown.code, unknown.result["error"]) == (2, "UsageError")


def test_gc_says_first_and_keeps_what_is_needed(project: Project):
    for text in ("one", "two", "three"):
        recipe(project, f'{{name: a, entrypoint: "own:write", params: {{text: {text}}}}}')
        assert run(project).code == 0
    would = ask(project, "gc", "--keep-executions", "1", "--older-than", "0s")
    assert would["removed"] is False
    assert sorted(i["kind"] for i in would["items"] if i["kind"] == "artifact") == ["artifact", "artifact"]
    assert len(list((project.folder / ".orchestrate").glob("store/artifacts/*/*"))) == 3
    did = ask(project, "gc", "--keep-executions", "1", "--older-than", "0s", "--remove")
    assert did["removed"] is True
    (kept,) = (project.folder / ".orchestrate").glob("store/artifacts/*/*/text")
    assert kept.read_text() == "three"
    assert actions(run(project)) == {"a": "REUSE"}


def test_gc_takes_nothing_from_an_execution_that_runs(project: Project):
    process = start_slow(project)
    did = ask(project, "gc", "--keep-executions", "1", "--older-than", "0s", "--remove")
    assert did["items"] == []
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_secrets_never_reach_output_or_disk(project: Project):
    recipe(project, '{name: a, command: ["sh", "-c", "echo done"], params: {api_key: "CANARY123456789"}}')
    done = run(project, MY_TOKEN="CANARY-ENV-123456")
    assert done.code == 0
    assert "CANARY" not in done.out + done.err
    text = project.run("status", done.result["execution"], "-e", "quiet.yaml").out
    assert "CANARY" not in text
