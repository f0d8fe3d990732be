"""The command line as a shell sees it: streams that close, folders that are not there, JSON and nothing but JSON."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from support.project import Project

QUIET = "environment: 1\ntracking: {uri: none}\nsites: {local: {kind: local, allow_cpu: true}}\n"
CODE = """
from pathlib import Path

def write(run):
    (Path(run.out) / "text").write_text("hello")

def fail(run):
    raise ValueError("token=SECRETSECRET")
"""

STUBBORN = """
import os, signal, time
from pathlib import Path

def fail(run):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path("flag").write_text(str(os.getpid()))
    time.sleep(60)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write("own.py", CODE)
    made.write("quiet.yaml", QUIET)
    made.write("recipe.yaml", 'recipe: 1\nname: own\nsteps:\n  - {name: a, entrypoint: "own:write"}\n')
    made.write("fails.yaml", 'recipe: 1\nname: fails\nsteps:\n  - {name: a, entrypoint: "own:fail"}\n')
    return made


def shell(project: Project, line: str) -> subprocess.CompletedProcess[str]:
    environment = {**project.environment(), "O": f"{sys.executable} -m orchestrator"}
    return subprocess.run(
        ["bash", "-c", line],
        cwd=project.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_run_whose_reader_goes_away_goes_on(project: Project):
    done = shell(project, "$O run recipe.yaml -e quiet.yaml | head -1; echo ${PIPESTATUS[0]}")
    assert done.stdout.splitlines()[-1] == "0", done.stderr
    assert done.stderr == ""
    (row,) = project.run("status", "-e", "quiet.yaml", "--json").result["executions"]
    assert row["state"] == "succeeded"
    done = shell(project, "$O status -e quiet.yaml | true; echo ${PIPESTATUS[0]}")
    assert done.stdout == "0\n"


@pytest.mark.parametrize("streams", [">&-", ">&- 2>&- <&-", ">/dev/full"])
def test_a_run_without_streams(project: Project, streams: str):
    assert shell(project, f"$O run recipe.yaml -e quiet.yaml {streams}").returncode == 0
    assert shell(project, "$O run recipe.yaml -e quiet.yaml --json").stdout.count("REUSE") > 0


@pytest.mark.parametrize(
    "arguments",
    [
        "status",
        "plan recipe.yaml",
        "validate recipe.yaml",
        "gc",
        "endpoint list",
        "lineage x",
        "logs",
        "cancel",
        "doctor",
    ],
)
def test_looking_makes_nothing_on_disk(project: Project, arguments: str):
    done = project.run(*arguments.split(), "-e", "quiet.yaml", "--json")
    assert done.code in {0, 2}, done.err
    assert isinstance(json.loads(done.out), dict)
    assert not (project.folder / ".orchestrate").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--json"], 2),
        (["bogus", "--json"], 2),
        (["run", "--json"], 2),
        (["run", "recipe.yaml", "--nope", "--json"], 2),
        (["status", "nosuch", "--json"], 2),
        (["resume", "nosuch", "--json"], 2),
        (["lineage", os.fsdecode(b"\xff"), "--json"], 2),
        (["run", "recipe.yaml", "-e", "file.yaml", "--json"], 3),
    ],
)
def test_every_error_is_one_json_object(project: Project, arguments: list[str], code: int):
    project.write("file.yaml", f"state: own.py\n{QUIET}")
    done = project.run(*arguments)
    assert done.code == code, done.out + done.err
    assert {"error", "message", "hint"} <= set(json.loads(done.out))


def test_a_failure_says_where_to_look(project: Project):
    done = project.run("run", "fails.yaml", "-e", "quiet.yaml")
    assert done.code == 6
    execution = project.run("status", "-e", "quiet.yaml", "--json").result["executions"][0]["execution"]
    assert f"orchestrate logs {execution} --step a -e quiet.yaml" in done.out
    assert f"orchestrate resume {execution} -e quiet.yaml" in done.out
    assert "SECRET" not in done.out + done.err
    found = project.run("run", "fails.yaml", "-e", "quiet.yaml", "--json").result["details"]
    assert found["step"] == "a"
    assert Path(found["log"]).is_file()
    assert found["execution"] in project.run("lineage", found["execution"], "-e", "quiet.yaml", "--json").out


def test_logs_end_when_the_execution_or_its_process_has(project: Project):
    project.write(
        "own.py",
        "import os, signal, time\ndef fail(run):\n    os.kill(os.getppid(), signal.SIGKILL)\n    time.sleep(9)\n",
    )
    assert project.run("run", "fails.yaml", "-e", "quiet.yaml").code == -9
    assert project.run("logs", "-f", "-e", "quiet.yaml", timeout_s=20).code == 0
    unknown = project.run("logs", "--step", "nope", "-e", "quiet.yaml", "--json")
    assert (unknown.code, unknown.result["hint"]) == (2, "have: a")


def test_without_a_home_or_a_user_name(project: Project):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": project.environment()["PYTHONPATH"]}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "run", "recipe.yaml", "-e", "quiet.yaml"],
        cwd=project.folder, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_on_a_terminal_of_80_columns(project: Project):
    project.write(
        "recipe.yaml",
        'recipe: 1\nname: own\nsteps:\n  - {name: a, entrypoint: "own:write"}\n'
        '  - {name: b, entrypoint: "own:fail", needs: [a]}\n',
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    arguments = [sys.executable, "-m", "orchestrator", "run", "recipe.yaml", "-e", "quiet.yaml"]
    process = subprocess.Popen(
        arguments, cwd=project.folder, env=project.environment(TERM="xterm"), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    raw = _all_of(ours)
    assert process.wait(timeout=30) == 6
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw).replace("\r", "")
    assert re.search(r"^✓  a  RUN", shown, re.MULTILINE)
    assert re.search(r"^✗  b  .*ValueError", shown, re.MULTILINE)
    assert "orchestrate logs" in shown
    table = shown[shown.rfind("own  ·") :].partition("\n\n")[0]
    assert all(len(line) <= 80 for line in table.splitlines())


def _all_of(handle: int) -> str:
    data = b""
    try:
        while more := os.read(handle, 1 << 16):
            data += more
    except OSError:  # the terminal's way to say that nobody holds its other end
        pass
    os.close(handle)
    return data.decode()


def test_a_second_ctrl_c_ends_at_once_and_in_json(project: Project):
    project.write("own.py", STUBBORN)
    process = project.start("run", "fails.yaml", "-e", "quiet.yaml", "--json")
    flag = project.folder / "flag"
    while not flag.exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=5)
    assert process.returncode == 130
    assert json.loads(out.splitlines()[-1])["error"] == "Interrupted"
    assert not Path(f"/proc/{flag.read_text()}").exists()
    (row,) = project.run("status", "-e", "quiet.yaml", "--json").result["executions"]
    assert row["state"].startswith("interrupted")


def test_a_terminal_that_closes_stops_cleanly(project: Project):
    project.write("own.py", STUBBORN.replace("signal.signal(signal.SIGTERM, signal.SIG_IGN)", ""))
    process = project.start("run", "fails.yaml", "-e", "quiet.yaml", "--json")
    while not (project.folder / "flag").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=20)
    assert process.returncode == 130
    (row,) = project.run("status", "-e", "quiet.yaml", "--json").result["executions"]
    assert row["state"] == "interrupted"


def test_a_state_folder_that_no_database_url_can_name(project: Project):
    project.write("odd.yaml", f'state: "a?b"\n{QUIET}')
    done = project.run("run", "recipe.yaml", "-e", "odd.yaml", "--json")
    assert (done.code, "one of ? # %" in done.result["message"]) == (3, True)
    assert not (project.folder / "a").exists()
