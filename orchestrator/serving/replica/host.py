"""Many models in one replica process, on one thread: the device's library wants one context and keeps the interpreter anyway.

The agent's commands come over a socket pair: `{"do": "add", "member": n, "config": path}` with the status pipe of the member,
`{"do": "stop", "member": n}`, which lets it drain, and `{"do": "end", "member": n}`, which does not; when the agent closes the pair, all
are stopped. While one is loaded, the others wait.
"""

from __future__ import annotations

import math
import os
import resource
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

import orjson

from orchestrator.core.errors import DeviceError, OrchestratorError
from orchestrator.serving.config import ReplicaSettings, read_settings
from orchestrator.serving.replica.blame import HOLDS, IDLE, RUNS, Blame
from orchestrator.serving.replica.member import Member
from orchestrator.serving.replica.watch import Watch

_COMMAND_BYTES: Final = 1 << 16


class Host:
    """Runs members until the agent has closed the control socket, and all have ended.

    Args:
        control: From the agent.
        blame: Shared with it.
    """

    def __init__(self, control: socket.socket, blame: Blame) -> None:
        self._control = control
        self._blame = blame
        self._watch = Watch(blame)
        self._ending = False
        self._members: dict[int, Member] = {}
        self._pauses: dict[int, float] = {}
        self._dials: dict[int, float] = {}
        self._owners: dict[int, int] = {}
        self._epoll = select.epoll()
        self._bell, bell = os.pipe()
        os.set_blocking(bell, False)
        signal.set_wakeup_fd(bell)
        signal.signal(signal.SIGTERM, _nothing)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two or three files for each member
        for file in (control.fileno(), self._bell):
            self._epoll.register(file, select.EPOLLIN)

    def wait_for(self, file: int, number: int) -> None:
        """What arrives there is this member's."""
        self._owners[file] = number
        self._epoll.register(file, select.EPOLLIN)

    def forget(self, file: int) -> None:
        """The file is about to be closed."""
        del self._owners[file]
        self._epoll.unregister(file)

    def run(self) -> int:
        """Serve; returns the exit code."""
        while self._members or not self._ending:
            files = self._wait()
            if self._bell in files:
                os.read(self._bell, _COMMAND_BYTES)
                self._end()
            if self._control.fileno() in files and not self._ending:
                self._command()
            now = time.monotonic()
            numbers = {self._owners[file] for file in files if file in self._owners} | self._pauses.keys()
            numbers |= {number for number, due in self._dials.items() if due <= now}
            for number in numbers & self._members.keys():
                if code := self._turn(self._members[number]):
                    return code
        return 0

    def _wait(self) -> list[int]:
        """Return the files that are ready; waits while no member has anything to do."""
        pause_s = min(self._pauses.values(), default=math.inf)
        if 0 < pause_s < math.inf:
            select.select([self._epoll], [], [], pause_s)  # finer than epoll's milliseconds
            pause_s = 0.0
        elif pause_s == math.inf:
            due = min(self._dials.values(), default=math.inf)
            pause_s = max(0.0, due - time.monotonic()) if due < math.inf else -1
        return [file for file, _ in self._epoll.poll(pause_s)]

    # --- commands ---

    def _command(self) -> None:
        data, files, *_ = socket.recv_fds(self._control, _COMMAND_BYTES, 1)
        if not data:
            self._end()
            return
        row: dict[str, Any] = orjson.loads(data)
        member = self._members.get(row["member"])
        if row["do"] == "add" and files:  # without its pipe, for want of files, the agent sees that closed
            self._add(row["member"], Path(row["config"]), files[0])
        elif row["do"] == "stop" and member is not None:
            member.stop()
            self._pauses[member.number] = 0.0
        elif row["do"] == "end" and member is not None:
            self._leave(member, 0)

    def _add(self, number: int, config: Path, status: int) -> None:
        os.set_inheritable(status, False)
        self._blame.note(number, RUNS)
        try:
            settings = read_settings(ReplicaSettings, config)
        except OrchestratorError as error:
            sys.stderr.write(f"{error}\n")
            os.write(status, orjson.dumps({"ended": error.exit_code}) + b"\n")
            os.close(status)
            return
        member = Member(settings, self._watch, number=number, status=status, files=_Files(self, number))
        try:
            member.load()
        except OrchestratorError as error:
            self._fail(member, error)
            return
        self._members[number], self._pauses[number] = member, 0.0
        self._blame.note(number, IDLE)

    def _end(self) -> None:
        """Stop all."""
        if not self._ending:
            self._ending = True
            self._epoll.unregister(self._control.fileno())
            for number, member in self._members.items():
                member.stop()
                self._pauses[number] = 0.0

    # --- members ---

    def _turn(self, member: Member) -> int:
        """Let a member work; returns the exit code where the device is of no use to anybody, else 0."""
        self._blame.note(member.number, RUNS)
        try:
            with self._watch.running(member.number):
                pause_s = member.turn(wait=False)
        except DeviceError as error:
            sys.stderr.write(f"{error}\n")
            member.fail(error)
            return error.exit_code
        except OrchestratorError as error:
            self._fail(member, error)
            return 0
        if member.over:
            self._leave(member, 0)
            return 0
        self._blame.note(member.number, HOLDS if member.busy else IDLE)
        _keep(self._pauses, member.number, pause_s)
        _keep(self._dials, member.number, member.links.due)
        return 0

    def _fail(self, member: Member, error: OrchestratorError) -> None:
        sys.stderr.write(f"{error}\n")
        member.fail(error)
        self._leave(member, error.exit_code)

    def _leave(self, member: Member, code: int) -> None:
        for table in (self._members, self._pauses, self._dials):
            table.pop(member.number, None)
        member.end(code)
        self._blame.note(member.number, IDLE)


class _Files:
    """The sockets of one member, in the host's epoll."""

    def __init__(self, host: Host, number: int) -> None:
        self._host, self._number = host, number

    def add(self, file: int) -> None:
        self._host.wait_for(file, self._number)

    def discard(self, file: int) -> None:
        self._host.forget(file)


def _keep(times: dict[int, float], number: int, when: float) -> None:
    if when < math.inf:
        times[number] = when
    else:
        times.pop(number, None)


def _nothing(_number: int, _frame: object) -> None:
    """The bell rings; without a handler the process would end."""
