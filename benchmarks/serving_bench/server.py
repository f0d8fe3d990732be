"""A server under test: started with a home, a log and a mark of its own, ready when it answers, gone with all it started."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from orchestrator.core.processes import die_with_parent
from serving_bench.job import Job
from serving_bench.processes import MARK, end_all

BENCHMARKS: Final = Path(__file__).parents[1]
ROOT: Final = BENCHMARKS.parent
_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")


class NotServed(Exception):
    """A server that cannot be measured; the text says why."""


class Server:
    """A folder, a mark and processes. Use it as a context; `start` processes inside."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix="sb-"))
        self.mark = f"{name}-{os.getpid()}-{time.monotonic_ns()}"
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """What its processes get: nothing of the caller's but the path."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        own = {"HOME": str(self.folder), MARK: self.mark, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        return {**kept, **own, "DO_NOT_TRACK": "1", "BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0"}

    def start(self, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start a process of this server."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env={**self.environment, **environment},
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )
        self.processes.append(process)
        return process

    def wait(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until it is ready.

        Raises:
            NotServed: It ended, or took too long; the end of its log is in the text.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            ended = [process.returncode for process in self.processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                why = f"ended with {ended[0]}" if ended else f"not ready within {timeout_s:.0f} s"
                raise NotServed(f"{why}: {self.log()}")
            time.sleep(0.1)

    def log(self, lines: int = 12) -> str:
        """Return the last lines of its log."""
        text = (self.folder / "log").read_text(errors="replace") if (self.folder / "log").exists() else ""
        return " | ".join(line.strip() for line in text.splitlines()[-lines:])[-1500:]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        end_all(self.mark)
        for process in self.processes:
            process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def load(job: Job) -> dict[str, Any]:
    """Run the load generator in a process of its own.

    Raises:
        NotServed: It failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "serving_bench.load"],
        input=job.to_json().encode(),
        capture_output=True,
        check=False,
        cwd=BENCHMARKS,
        env={**os.environ, "PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{ROOT}"},
        timeout=job.seconds + job.warmup_s + 90,
    )
    if done.returncode != 0:
        raise NotServed(f"the load generator: {done.stderr.decode()[-800:]}")
    return json.loads(done.stdout)


def answers(job: Job) -> bool:
    """Tell whether one request gets a good answer: how a server is ready."""
    try:
        found = load(replace(job, connections=1, seconds=0.05, warmup_s=0.0, rate=0.0, mark="", fixed=False))
    except (NotServed, subprocess.TimeoutExpired):
        return False
    return int(found["answers"].get("200", 0)) > 0


def checked(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result whose answers were all right.

    Raises:
        NotServed: Some were not.
    """
    bad = {status: count for status, count in found["answers"].items() if status != "200"}
    if found["wrong"] or bad:
        raise NotServed(f"{found['wrong']} wrong answers, statuses {bad}: {found['example'][:300]!r}")
    return dict(found)
