"""The replica process: one model, or many that share it. `python -m orchestrator.serving.replica.process --config replica.json`
runs one; with `--control FD --blame FD --parent PID` it runs those that the agent adds, see `orchestrator.serving.replica.host`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import socket
import sys
from pathlib import Path

from orchestrator.core.errors import OrchestratorError
from orchestrator.core.processes import die_with_parent
from orchestrator.serving.config import ReplicaSettings, read_settings
from orchestrator.serving.replica.blame import Blame
from orchestrator.serving.replica.host import Host
from orchestrator.serving.replica.member import Member, Stopped
from orchestrator.serving.replica.watch import Watch


def run_one(settings: ReplicaSettings) -> int:
    """Load one model and serve it until it is drained or the process is told to stop; returns the exit code."""
    member = Member(settings, Watch(), status=settings.status_fd)
    stopping = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True
        if member.serves:
            member.stop()

    signal.signal(signal.SIGTERM, stop)
    try:
        member.load()
        if stopping:
            member.stop()
        with contextlib.suppress(Stopped):
            while not member.over:
                pause_s = member.turn(wait=True)
                if 0 < pause_s < math.inf:
                    member.links.pause(pause_s)
    except OrchestratorError as error:
        sys.stderr.write(f"{error}\n")
        member.fail(error)
        return error.exit_code
    member.end(0)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run a replica; returns the exit code."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="orchestrator.serving.replica.process")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path)
    what.add_argument("--control", type=int)
    parser.add_argument("--blame", type=int)
    parser.add_argument("--parent", type=int)
    args = parser.parse_args(argv)
    if args.control is not None:
        if os.getppid() != args.parent:
            return 3
        return Host(socket.socket(fileno=args.control), Blame(args.blame)).run()
    try:
        settings = read_settings(ReplicaSettings, args.config)
    except OrchestratorError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    if settings.parent_pid and os.getppid() != settings.parent_pid:
        return 3
    return run_one(settings)


if __name__ == "__main__":
    sys.exit(main())
