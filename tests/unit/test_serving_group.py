"""A group of models in one process: who is accused when it ends, who is not, and when it may be killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import DeviceError
from orchestrator.serving.agent import group as grouping
from orchestrator.serving.agent.group import Group, Groups, Place
from orchestrator.serving.config import AgentSettings
from orchestrator.serving.link.wire import Placement
from orchestrator.serving.replica.blame import HOLDS, RUNS, Blame
from tests.support.serving_site import DEVICE, scale_bundle


class Process:
    """The shared process: ends when it is told to."""

    pid = 7

    def __init__(self, blame: int) -> None:
        self.blame = Blame(blame)
        self.code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        return await asyncio.shield(self.code)

    def kill(self) -> None:
        self.code.set_result(-signal.SIGKILL)


class World:
    """One slot's groups, and the processes that they have started."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes: list[Process] = []
        self.bundle = scale_bundle(folder / "bundle", 2.0, isolation="shared")
        self.groups = Groups(AgentSettings("edge", "/l", str(folder), DEVICE), "edge-0")
        monkeypatch.setattr(asyncio, "create_subprocess_exec", self._start)
        monkeypatch.setattr(grouping, "_PATIENCE_S", 0.001)
        monkeypatch.setattr(grouping, "_END_S", 0.01)

    async def _start(self, *_: str, pass_fds: tuple[int, ...], **__: Any) -> Process:
        self.processes.append(Process(pass_fds[1]))
        return self.processes[-1]

    def placement(self, endpoint: str, runtime: str = "onnx-cpu", variant: str = "") -> Placement:
        return Placement(endpoint, self.bundle[0], str(self.bundle[1]), runtime, DEVICE, variant)

    async def join(self, endpoint: str, **more: str) -> Place:
        read_end, write_end = os.pipe()
        try:
            return await self.groups.join(self.placement(endpoint, **more), Path("replica.json"), write_end, None)
        finally:
            os.close(read_end)
            os.close(write_end)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    async def go(body: Callable[[World], Awaitable[None]]) -> None:
        async with asyncio.timeout(10):
            await body(World(tmp_path, monkeypatch))

    return lambda body: asyncio.run(go(body))


def test_builds_of_one_endpoint_and_runtimes_have_processes_of_their_own(world: Any) -> None:
    async def body(w: World) -> None:
        first, other = await w.join("a"), await w.join("b")
        canary, second = await w.join("a", variant="sha256:1"), await w.join("b", variant="sha256:1")
        twin = await w.join("a", runtime="twin")
        assert len(w.processes) == 3
        groups = [place._group for place in (first, other, canary, second, twin)]
        assert groups[0] is groups[1]
        assert groups[2] is groups[3]
        assert len({id(group) for group in groups}) == 3

    world(body)


@pytest.mark.parametrize(("code", "kills"), [(-signal.SIGSEGV, 1), (-signal.SIGKILL, 2), (1, 1)])
def test_who_ran_when_the_process_ended_shares_none_any_more(world: Any, code: int, kills: int) -> None:
    async def body(w: World) -> None:
        for number in range(kills):
            assert w.groups.takes(w.placement("a"))
            guilty, other = await w.join("a"), await w.join("b")
            w.processes[number].blame.note(guilty.number, RUNS)
            w.processes[number].blame.note(other.number, HOLDS)
            w.processes[number].code.set_result(code)
            assert await guilty.wait() == await other.wait() == code
            assert not guilty.innocent
            assert other.innocent
        assert not w.groups.takes(w.placement("a"))
        assert w.groups.takes(w.placement("a", variant="sha256:1")), "another build is another model"
        assert w.groups.takes(w.placement("b"))
        assert len(w.processes) == kills

    world(body)


def test_where_nobody_was_at_work_nobody_is_innocent(world: Any) -> None:
    async def body(w: World) -> None:
        places = [await w.join("a"), await w.join("b")]
        w.processes[0].code.set_result(1)
        assert [await place.wait() for place in places] == [1, 1]
        assert not any(place.innocent for place in places)
        assert w.groups.takes(w.placement("a"))

    world(body)


def test_a_device_that_fails_is_nobodys_fault(world: Any) -> None:
    async def body(w: World) -> None:
        teller, other = await w.join("a"), await w.join("b")
        w.processes[0].blame.note(teller.number, RUNS)
        w.processes[0].code.set_result(DeviceError.exit_code)
        await teller.wait()
        assert not teller.innocent, "it counts against the device, by this member"
        assert other.innocent
        assert w.groups.takes(w.placement("a"))

    world(body)


def test_a_member_that_the_process_could_not_take_has_ended(world: Any) -> None:
    async def body(w: World) -> None:
        place = await w.join("a")
        place.closed()
        assert await place.wait() == 1

    world(body)


def test_who_leaves_when_asked_kills_nobody(world: Any) -> None:
    async def body(w: World) -> None:
        place, _ = await w.join("a"), await w.join("b")
        place.send_signal(signal.SIGKILL)
        place.told({"ended": 0})
        await asyncio.sleep(0.05)
        assert not w.processes[0].code.done()

    world(body)


@pytest.mark.parametrize("stuck_loads", [False, True])
def test_a_process_that_loads_one_is_not_killed_for_another(world: Any, stuck_loads: bool) -> None:
    async def body(w: World) -> None:
        loading, stuck = await w.join("a"), await w.join("b")
        (loading if stuck_loads else stuck).told({"state": "ready"})
        stuck.send_signal(signal.SIGKILL)
        await asyncio.sleep(0.05)
        assert not w.processes[0].code.done()
        (stuck if stuck_loads else loading).told({"state": "ready"})
        assert await stuck.wait() == -signal.SIGKILL
        await asyncio.sleep(0)
        assert loading.innocent
        with pytest.raises(ProcessLookupError):
            stuck.send_signal(signal.SIGTERM)

    world(body)


def test_the_end_of_the_agent_waits_for_no_load(world: Any) -> None:
    async def body(w: World) -> None:
        await w.join("a")
        stuck = await w.join("b")
        w.groups.hurry()
        stuck.send_signal(signal.SIGKILL)
        assert await stuck.wait() == -signal.SIGKILL
        await w.groups.gone()

    world(body)


def test_the_last_member_ends_the_process_and_the_next_one_gets_a_new_one(world: Any) -> None:
    async def body(w: World) -> None:
        place = await w.join("a")
        group: Group = place._group
        place.told({"ended": 0})
        assert await place.wait() == 0
        while group._control.fileno() >= 0:
            await asyncio.sleep(0.001)
        await w.join("a")
        assert len(w.processes) == 2

    world(body)


def test_stages_and_runtimes_with_code_share_nothing(world: Any, tmp_path: Path) -> None:
    async def body(w: World) -> None:
        assert w.groups.takes(w.placement("a", runtime="om"))
        assert not w.groups.takes(w.placement("a", runtime="torch"))
        assert not w.groups.takes(w.placement("a", runtime="mindir"))
        w.bundle = scale_bundle(tmp_path / "own", 2.0)
        assert not w.groups.takes(w.placement("a"))

    world(body)
