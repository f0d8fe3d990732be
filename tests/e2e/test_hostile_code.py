"""User code that does what user code does: exits, forks, closes, prints, replaces, and never breaks the execution."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support.project import Project

QUIET = "environment: 1\ntracking: {uri: none}\nsites: {local: {kind: local, allow_cpu: true}}\n"
CODE = """
import os, signal, subprocess, sys, time
from pathlib import Path

def leave(run):
    (Path(run.out) / "text").write_text("left")

def changes_the_process(run):
    os.chdir("/")
    os.umask(0o777)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.close()
    sys.stderr = None
    sys.exit(0)

def forgets_children(run):
    if os.fork() == 0:
        time.sleep(300)
        os._exit(0)
    subprocess.Popen(["sleep", "300"], start_new_session=True, env={**os.environ, "CANARY": run.params["mark"]})

def forks_into_the_worker(run):
    os.fork()
    leave(run)

def exits_behind_our_back(run):
    os._exit(0)

def own_interrupt(run):
    raise KeyboardInterrupt("mine")

def odd_text(run):
    raise ValueError("bad \\udcff and \\0 and " + "A" * 1_000_000)

def odd_name(run):
    run.log(**{"two\\nlines": 1.0})

def odd_progress(run):
    run.progress(float("nan"), float("inf"), "x")
    leave(run)

def fails_once(run):
    marks = Path(run.params["marks"])
    with marks.open("a") as file:
        file.write("x")
    if len(marks.read_text()) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    (Path(run.out) / "text").write_text(marks.read_text())

def waits(run):
    flag = Path(run.params["flag"])
    if not flag.exists():
        flag.write_text("x")
        time.sleep(60)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write("own.py", CODE)
    made.write("quiet.yaml", QUIET)
    return made


def run(project: Project, *names: str, params: str = "{}", flags: tuple[str, ...] = ()):
    steps = "".join(f'  - {{name: s{i}, entrypoint: "own:{name}", params: {params}}}\n' for i, name in enumerate(names))
    project.write("recipe.yaml", f"recipe: 1\nname: own\nsteps:\n{steps}")
    return project.run("run", "recipe.yaml", "-e", "quiet.yaml", "--json", *flags)


def status(project: Project):
    return project.run("status", "-e", "quiet.yaml", "--json").result["executions"]


def test_what_a_step_does_to_the_process_ends_with_the_step(project: Project):
    done = run(project, "changes_the_process", "forks_into_the_worker", "odd_progress", "leave")
    assert done.code == 0, done.err
    assert "NaN" not in done.out
    texts = list((project.folder / ".orchestrate").glob("store/artifacts/*/*/text"))
    assert [t.stat().st_mode & 0o777 for t in texts] == [0o444]


def test_children_that_a_step_forgets_are_ended(project: Project):
    mark = f"hostile-{project.folder}"
    assert run(project, "forgets_children", params=f'{{mark: "{mark}"}}').code == 0
    assert not [path for path in Path("/proc").glob("[0-9]*/environ") if mark.encode() in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("exits_behind_our_back", "ended with code 0"),
        ("own_interrupt", "KeyboardInterrupt: mine"),
        ("odd_text", "bad ? and"),
        ("odd_name", "a metric is named"),
    ],
)
def test_the_users_fault_is_the_users_and_recorded(project: Project, name: str, says: str):
    done = run(project, name)
    assert done.code == 6, done.out + done.err
    assert says in done.result["message"]
    assert len(done.result["message"]) < 2100
    assert [row["state"] for row in status(project)] == ["failed"]


def test_a_refresh_holds_for_its_retries_and_for_a_continued_execution(project: Project):
    marks, flag = project.folder / "marks", project.folder / "flag"
    params = f'{{marks: "{marks}", flag: "{flag}"}}'
    flag.write_text("there")
    assert run(project, "fails_once", "waits", params=params).code == 0
    again = run(project, "fails_once", "waits", params=params, flags=("--refresh", "s0"))
    assert again.code == 0, again.out
    assert marks.read_text() == "xxx", "killed in its second run; the retry must not take the first run's result"


def test_refresh_of_a_step_that_the_interrupted_execution_had_done(project: Project):
    flag = project.folder / "flag"
    first = '  - {name: a, entrypoint: "own:leave"}\n'
    steps = f'{first}  - {{name: b, entrypoint: "own:waits", params: {{flag: "{flag}"}}}}\n'
    project.write("recipe.yaml", f"recipe: 1\nname: own\nsteps:\n{steps}")
    process = project.start("run", "recipe.yaml", "-e", "quiet.yaml", "--json")
    assert process.stdout is not None
    while '"event": "step", "step": "b"' not in process.stdout.readline():
        assert process.poll() is None
    while not flag.exists():
        assert process.poll() is None
    process.kill()
    process.communicate()
    done = project.run("run", "recipe.yaml", "-e", "quiet.yaml", "--json", "--refresh", "a")
    assert done.code == 0, done.out
    (row,) = status(project)
    assert row["state"] == "succeeded"
    attempts = project.run("status", row["execution"], "-e", "quiet.yaml", "--json").result["attempts"]
    assert [(a["step"], a["state"]) for a in attempts] == [
        ("a", "succeeded"),
        ("a", "succeeded"),
        ("b", "cancelled"),
        ("b", "succeeded"),
    ]


def test_a_program_beside_the_recipe_speaks_while_it_runs(project: Project):
    script = "#!/bin/sh\necho early >&2\ntouch started\nsleep 60\n"
    project.write("sub/go.sh", script).chmod(0o755)
    project.write("sub/recipe.yaml", 'recipe: 1\nname: own\nsteps:\n  - {name: a, command: ["./go.sh"]}\n')
    process = project.start("run", "sub/recipe.yaml", "-e", "quiet.yaml")
    while not (project.folder / "sub/started").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert "early" in project.run("logs", "-e", "quiet.yaml").out
    project.write("sub/go.sh", "no shebang").chmod(0o755)
    done = project.run("run", "sub/recipe.yaml", "-e", "quiet.yaml", "--json")
    assert (done.code, "cannot start" in done.result["message"]) == (6, True)


def test_a_secret_parameter_reaches_the_step_and_no_file_but_the_private_ones(project: Project):
    project.write("own.py", CODE + "\ndef check(run):\n    assert run.params.api_key.startswith('CANARY')\n")
    for value in ("CANARYone", "CANARYtwo"):
        done = run(project, "check", params=f'{{api_key: "{value}"}}')
        assert done.code == 0, done.out
        assert "CANARY" not in done.out + done.err
        assert done.result["steps"][0]["action"] == "RUN"
    assert "params.api_key changed" in done.out
    state = project.folder / ".orchestrate"
    holding = {path.name: path for path in state.rglob("*") if path.is_file() and b"CANARY" in path.read_bytes()}
    assert set(holding) <= {"segment.json", "ledger.db", "ledger.db-wal"}, "the worker's orders, and the recipe's text"
    assert {path.stat().st_mode & 0o077 for path in holding.values()} == {0}
