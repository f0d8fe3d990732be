"""A replica under supervision, with processes that only pretend: what an agent says of one that is taken away and wanted again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger import Generation
from orchestrator.rollout.readiness import readiness
from orchestrator.serving.agent import supervise
from orchestrator.serving.agent.supervise import Supervised
from orchestrator.serving.config import AgentSettings
from orchestrator.serving.link.wire import Placement

DEVICE = "cpu (rehearsal)"
PLACED = Placement("digits", "sha256:two", "/nowhere", "onnx-cpu", DEVICE)


class Process:
    """Says what it is told to say; ends on SIGTERM when it is polite."""

    def __init__(self, status_fd: int) -> None:
        self.pid = 7
        self._fd = os.dup(status_fd)
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def says(self, state: str, error: str = "") -> None:
        os.write(self._fd, json.dumps({"state": state, "error": error}).encode() + b"\n")

    def ends(self, code: int) -> None:
        if not self._code.done():
            os.close(self._fd)
            self._code.set_result(code)

    def send_signal(self, number: int) -> None:
        if number == signal.SIGTERM:
            self.ends(0)

    async def wait(self) -> int:
        return await asyncio.shield(self._code)


class Agent:
    """One supervised replica and what its agent would report."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes: list[Process] = []
        self.gone: list[Supervised] = []
        monkeypatch.setattr(asyncio, "create_subprocess_exec", self._start)
        monkeypatch.setattr(supervise, "_FIRST_PAUSE_S", 0.001)
        settings = AgentSettings("edge", "/l", str(folder), DEVICE)
        self.one = Supervised(PLACED, name="edge-0", settings=settings, changed=lambda: None, gone=self.gone.append)

    async def _start(self, *_: str, pass_fds: tuple[int, ...], **__: Any) -> Process:
        self.processes.append(Process(pass_fds[0]))
        return self.processes[-1]

    async def until(self, state: str, *, processes: int = 1) -> None:
        async with asyncio.timeout(5):
            while self.one.report().state != state or len(self.processes) < processes:
                await asyncio.sleep(0.001)

    def ready(self, reachable: int) -> tuple[bool, bool]:
        """Whether generation 3, with the same bundle, is ready, and whether it is said to have failed."""
        row = self.one.report().to_json()
        status: dict[str, Any] = {"agents": [{"pool": "edge", "version": 9, "replicas": [row]}]}
        status["generations"] = [{"endpoint": "digits", "generation": 3, "ready": reachable}]
        found = readiness(status, _generation(), 9)
        return found.ready, bool(found.failure)


def _generation() -> Generation:
    from types import SimpleNamespace
    from typing import cast

    return cast("Generation", SimpleNamespace(endpoint="digits", bundle="sha256:two", number=3, pool="edge"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Agent], Awaitable[None]]], None]:
    def go(test: Callable[[Agent], Awaitable[None]]) -> None:
        async def main() -> None:
            agent = Agent(tmp_path, monkeypatch)
            await test(agent)
            await agent.one.end()

        asyncio.run(main())

    return go


def test_one_that_serves_on_is_ready_for_the_next_generation(run: Any) -> None:
    async def test(agent: Agent) -> None:
        await agent.until("starting", processes=1)
        agent.processes[0].says("ready")
        await agent.until("ready")
        agent.one.retire()
        assert agent.one.report().state == "stopping"
        agent.one.want(PLACED)
        assert agent.ready(1) == (True, False), "the router has not let it go; it says nothing again"
        assert len(agent.processes) == 1

    run(test)


def test_one_that_drains_is_not_ready_until_it_has_come_back(run: Any) -> None:
    async def test(agent: Agent) -> None:
        await agent.until("starting", processes=1)
        agent.processes[0].says("ready")
        await agent.until("ready")
        agent.one.retire(at_once=True)
        await asyncio.sleep(0)
        agent.one.want(PLACED)
        assert agent.ready(0) == (False, False)
        agent.processes[0].ends(0)
        await agent.until("starting", processes=2)
        assert agent.one.report().restarts == 1
        agent.processes[1].says("ready")
        await agent.until("ready")
        assert agent.ready(1) == (True, False)

    run(test)


def test_what_the_former_generation_failed_is_not_held_against_the_next(run: Any) -> None:
    async def test(agent: Agent) -> None:
        for number in range(3):
            await agent.until("failed" if number else "starting", processes=number + 1)
            agent.processes[number].says("failed", "no memory")
            agent.processes[number].ends(1)
        await agent.until("failed", processes=4)
        assert agent.ready(0) == (False, True), "three bad ends in a row"
        agent.one.retire()
        agent.one.want(PLACED)
        assert agent.one.report().restarts == 3
        assert agent.ready(0) == (False, False)
        agent.processes[3].ends(1)
        await agent.until("failed", processes=4)
        assert agent.ready(0) == (False, False), "the old process has ended badly, once"
        await agent.until("failed", processes=5)
        agent.processes[4].ends(1)
        await agent.until("failed", processes=6)
        assert agent.ready(0) == (False, True), "and the new one as well"

    run(test)
