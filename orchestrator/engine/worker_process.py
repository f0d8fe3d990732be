"""The local worker as a child process: it dies with us, stops on demand, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from orchestrator.core.processes import end_processes, pids_with_environment
from orchestrator.steps.segment import Segment

_STOP_GRACE_S: Final = 10.0
_MARK: Final = "ORCHESTRATE_RECIPE_OF"


class WorkerProcess:
    """A running segment. Start it from the main thread: the kernel ties its life to the thread that forked it.

    Every process that the user's code starts inherits a mark in its environment that names the recipe's state; what
    bears the mark before a segment begins or after it has ended is left over (of an orchestrator that was killed, of
    code that forgets its children) and is ended.

    Args:
        segment: What to run.
        mark: Names the recipe in this state folder; the caller holds that recipe's lease.
    """

    def __init__(self, segment: Segment, mark: str) -> None:
        self._mark = mark
        self._sweep()
        segment.write()
        log = segment.folder / "worker.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.steps.worker", str(segment.path), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**_environment(segment.site_state), _MARK: mark},
                start_new_session=True,  # Ctrl-C reaches the engine alone, which then stops us in order
            )
        self.log = log

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        return self._process.poll()

    def stop(self, grace_s: float = _STOP_GRACE_S) -> int:
        """Ask it to stop, insist after `grace_s` or at a second Ctrl-C, and return its exit code."""
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal(signal.SIGKILL)
        return self.ended()

    def ended(self) -> int:
        """Wait for its end, end what it left running, and return its exit code."""
        code = self._process.wait()
        self._signal(signal.SIGKILL)  # those of its session that ignored the rest
        self._sweep()
        return code

    def tail(self, size_bytes: int = 2000) -> str:
        """Return the end of what it printed outside of any step."""
        data = self.log.read_bytes()[-size_bytes:]
        return data.decode(errors="replace").strip()

    def _sweep(self) -> None:
        left = list(pids_with_environment(_MARK, self._mark))
        if left:
            end_processes(left, grace_s=1.0)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return


def _environment(state: Path) -> dict[str, str]:
    """Return the worker's environment; our own switches travel, addresses of other clusters do not."""
    dropped = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_SUBMISSION_ID"}
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    environment.setdefault("PYTHONUNBUFFERED", "1")
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    environment.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # torch_npu without CANN breaks `import torch`
    environment["ORCHESTRATE_STATE"] = str(state)
    return environment
