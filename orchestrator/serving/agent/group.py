"""Models that share a process: a group for each runtime of the slot, started with its first member and ended with its last.

A group has one build of an endpoint: the next one, a canary, goes into a second group, and so do the next ones of other endpoints.
Who may have ended its process runs alone for as long as the agent lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Final, cast

import orjson

from orchestrator.core.errors import DeviceError, IntegrityError
from orchestrator.core.files import private_folder
from orchestrator.serving.agent.launch import PROGRAM, rotate
from orchestrator.serving.config import AgentSettings
from orchestrator.serving.link.wire import Placement
from orchestrator.serving.replica.blame import MEMBERS, Blame
from orchestrator.serving.serve_settings import MODEL, SHARING, read_serve_settings

_log: Final = logging.getLogger("orchestrator.serving.agent")
_ALONE: Final = 2
"""From so much suspicion on a model shares no process."""
_END_S: Final = 5.0
_PATIENCE_S: Final = 0.5
"""Between two looks whether a process still loads a model for which it must not be killed."""


class Place:
    """One member's place in a group; see `Running`.

    Attributes:
        loading: Whether the process has not come to it yet, or loads it.
        innocent: The process has ended with it, by the doing of others.
        log_path: The process's log.
    """

    def __init__(self, group: Group, number: int, placement: Placement) -> None:
        self._group, self.number, self.placement = group, number, placement
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.loading, self.innocent = True, False
        self.log_path = group.log_path

    @property
    def pid(self) -> int:
        """Of the process that all share."""
        return self._group.pid

    async def wait(self) -> int:
        """See `Running`."""
        return await asyncio.shield(self._code)

    def told(self, row: Mapping[str, object]) -> None:
        """Take in what the member says of itself."""
        self.loading = self.loading and row.get("state") == "starting"
        if "ended" in row:
            self.ended(cast("int", row["ended"]))

    def ended(self, code: int) -> None:
        """The member has ended, or the whole process."""
        if not self._code.done():
            self._code.set_result(code)
            self._group.leave(self)

    def closed(self) -> None:
        """Its pipe has been closed: the process has ended, which it tells soon, or it could not take the member in."""
        asyncio.get_running_loop().call_later(_END_S, self.ended, 1)

    def send_signal(self, number: int, /) -> None:
        """See `Running`. SIGKILL hits all members where this one does not leave the process without it."""
        if self._code.done():
            raise ProcessLookupError
        if number == signal.SIGKILL:
            self._group.end(self)
        else:
            self._group.stop(self)


class Group:
    """One process and its members.

    Args:
        name: For its log.
        folder: Where that lies.
        accuse: Told of a member that may have ended the process, and of the exit code.
    """

    def __init__(self, name: str, folder: Path, accuse: Callable[[Placement, int], None]) -> None:
        self.name = name
        self._accuse = accuse
        self.log_path = folder / f"{name}.log"
        self.places: dict[int, Place] = {}
        self.ending = self._hurried = False
        self.pid = self._number = 0
        self._hung: set[int] = set()
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, variables: dict[str, str] | None) -> None:
        """Start the process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        blame = Blame.make()
        rotate(self.log_path)
        with theirs, self.log_path.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *PROGRAM,
                *("--control", str(theirs.fileno()), "--blame", str(blame), "--parent", str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(), blame),
                env=variables,
            )
        self._control, self._blame = ours, Blame(blame)
        os.close(blame)
        self.pid = self._process.pid
        self._later(self._follow())

    async def _follow(self) -> None:
        code = await self._process.wait()
        self.ending = True
        suspects = self._hung or self._blame.suspects(code, self.places.keys())
        if self.places:
            _log.warning("%s ended with %d and %d models; %d of them to blame", self.name, code, len(self.places), len(suspects))  # fmt: skip
        for place in list(self.places.values()):
            if place.number in suspects and code != DeviceError.exit_code:  # a device that fails is nobody's fault
                self._accuse(place.placement, code)
            place.innocent = bool(suspects) and place.number not in suspects
            place.ended(code)

    def takes(self, endpoint: str) -> bool:
        """Whether there is room, and no build of the endpoint in the process."""
        endpoints = {place.placement.endpoint for place in self.places.values()}
        return endpoint not in endpoints and len(self.places) < MEMBERS

    def enter(self, placement: Placement) -> Place:
        """Give a model its place."""
        while self._number % MEMBERS in self.places:
            self._number += 1
        place = self.places[self._number % MEMBERS] = Place(self, self._number % MEMBERS, placement)
        self._number += 1
        return place

    async def load(self, place: Place, config: Path, status: int) -> None:
        """Have the process load a model that has entered; see `Groups.join`."""
        await self._send({"do": "add", "member": place.number, "config": str(config)}, status)

    def stop(self, place: Place) -> None:
        """Let a member drain. The process may be busy with a load: nobody waits for it."""
        self._later(self._send({"do": "stop", "member": place.number}))

    async def _send(self, row: dict[str, object], *files: int) -> None:
        kept = [os.dup(file) for file in files]  # who gave them may end first
        try:
            async with self._turn:
                with contextlib.suppress(OSError):  # the process has ended, which `_follow` tells
                    await asyncio.to_thread(socket.send_fds, self._control, [orjson.dumps(row)], kept)
        finally:
            for file in kept:
                os.close(file)

    def leave(self, place: Place) -> None:
        """The member has ended; without members the process ends."""
        self.places.pop(place.number, None)
        if not self.places:
            self.ending = True
            self._later(self._close())

    async def _close(self) -> None:
        async with self._turn:
            self._control.close()

    def end(self, place: Place) -> None:
        """Have a member leave without being drained; the process is killed where it does not come to that."""
        self._later(self._send({"do": "end", "member": place.number}))
        asyncio.get_running_loop().call_later(0 if self._hurried else _END_S, self._kill, place)

    def _kill(self, place: Place) -> None:
        if self.places.get(place.number) is not place:
            return
        if not self._hurried and any(other.loading for other in self.places.values()):
            asyncio.get_running_loop().call_later(_PATIENCE_S, self._kill, place)  # a load has an alarm of its own
            return
        self._hung.add(place.number)
        _log.warning("%s is killed with %d models: one of them does not end", self.name, len(self.places))
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def hurry(self) -> None:
        """The agent ends: nobody is added any more, and no kill waits for a load."""
        self.ending = self._hurried = True

    async def gone(self) -> None:
        """Wait for the end of the process, whose members have ended; it is killed where that takes long."""
        try:
            await asyncio.wait_for(self._process.wait(), _END_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Groups:
    """The groups of a slot, by runtime."""

    def __init__(self, settings: AgentSettings, slot: str) -> None:
        self._folder = private_folder(Path(settings.state) / "replicas")
        self._slot = slot
        self._groups: dict[str, list[Group]] = {}
        self._suspicion: dict[tuple[str, str, str], int] = {}
        self._starting: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def takes(self, placement: Placement) -> bool:
        """Return whether the bundle asks to share a process, its runtime can, and it has not ended one before."""
        known = self._suspicion.get((placement.endpoint, *placement.build), 0)
        if placement.stage != MODEL or placement.runtime not in SHARING or known >= _ALONE:
            return False
        try:
            return read_serve_settings(Path(placement.path)).isolation == "shared"
        except IntegrityError:
            return False  # the replica says what is wrong with it

    def _accuse(self, placement: Placement, code: int) -> None:
        """A kill from outside, as the kernel's where memory is short, hits whoever runs: it takes two of them."""
        key = (placement.endpoint, *placement.build)
        self._suspicion[key] = self._suspicion.get(key, 0) + (1 if code == -signal.SIGKILL else _ALONE)

    async def join(self, placement: Placement, config: Path, status: int, variables: dict[str, str] | None) -> Place:
        """Have a model loaded by a process of its runtime, which is started where there is none for it.

        Args:
            placement: The model's.
            config: The replica's settings.
            status: The end of a pipe that the member writes to; ours stays open.
            variables: The process's environment.
        """
        async with self._starting[placement.runtime]:
            groups = [group for group in self._groups.get(placement.runtime, ()) if not group.ending]
            group = next((group for group in groups if group.takes(placement.endpoint)), None)
            if group is None:
                names = {group.name for group in groups}
                words = (f"{self._slot}.shared-{placement.runtime}-{number}" for number in itertools.count(1))
                group = Group(next(word for word in words if word not in names), self._folder, self._accuse)
                await group.start(variables)
                groups.append(group)
            self._groups[placement.runtime] = groups
            place = group.enter(placement)
        await group.load(place, config, status)  # it waits while the process loads others
        return place

    def hurry(self) -> None:
        """The agent ends: see `Group.hurry`."""
        for group in self._all():
            group.hurry()

    async def gone(self) -> None:
        """Wait for the end of every process, once their members have ended."""
        await asyncio.gather(*(group.gone() for group in self._all()))

    def _all(self) -> list[Group]:
        return [group for groups in self._groups.values() for group in groups]
