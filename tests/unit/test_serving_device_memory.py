"""A slot's memory on its device: what npu-smi says of our processes, and who makes room by it."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ascend.npu_smi import parse_table
from orchestrator.serving.agent import resident, residents
from orchestrator.serving.agent.device_memory import DeviceMemory, with_children
from orchestrator.serving.agent.residents import Residents
from orchestrator.serving.config import AgentSettings
from orchestrator.serving.link.reports import ReplicaReport
from orchestrator.serving.link.wire import Placement
from tests.support import npu_smi_texts as texts

MIB = 1 << 20
SOC = "Ascend910A"


def test_the_table_names_the_processes() -> None:
    assert parse_table(texts.ONE_CHIP_PER_NPU).processes == ((139667, 30780),)
    assert parse_table(texts.TWO_CHIPS_PER_CARD).processes == ()


def test_children_count_for_those_who_started_them() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert {os.getpid(), child.pid} <= with_children([os.getpid(), 0])
        child.communicate(b"\n")


def test_npu_smi_says_what_is_held_and_free(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    found = {"PATH": str(tmp_path), "ASCEND_RT_VISIBLE_DEVICES": "0"}
    memory = DeviceMemory(found)
    asyncio.run(memory.refresh([os.getpid()], fresh=True))
    assert (memory.tells, memory.free, memory.held([os.getpid()])) == (False, None, 0)
    texts.fake(tmp_path, texts.ONE_CHIP_PER_NPU)
    for _ in range(2):
        asyncio.run(memory.refresh([os.getpid()], fresh=True))
    assert (memory.tells, memory.free) == (False, (32768 - 30710) * MIB)
    assert caplog.text.count("counts the host's") == 1
    texts.fake(tmp_path, texts.ONE_CHIP_PER_NPU.replace("139667", str(os.getpid())))
    asyncio.run(memory.refresh([os.getpid()], fresh=True))
    assert (memory.tells, memory.held([os.getpid()])) == (True, 30780 * MIB)
    texts.fake(tmp_path, "dcmi module initialize failed. ret is -8005", code=1)
    asyncio.run(memory.refresh([os.getpid()], fresh=True))
    assert (memory.tells, memory.held([os.getpid()])) == (True, 30780 * MIB)  # as last seen


class Process:
    """Stands for `Supervised`: ready after a moment; its pid is the endpoint's number."""

    running: set[str] = set()

    def __init__(self, placement: Placement, *, changed: Any, gone: Any, **_: Any) -> None:
        self.placement, self._changed, self._gone = placement, changed, gone
        self.used_at, self._state = 0.0, "starting"
        self.shared_bytes = None
        asyncio.get_running_loop().call_soon(self._loaded)

    def _loaded(self) -> None:
        self._state = "ready"
        Process.running |= {self.placement.endpoint}
        self._changed()

    def report(self) -> ReplicaReport:
        one = self.placement
        return ReplicaReport(one.endpoint, one.bundle, self._state, 0, int(one.endpoint[1:]), "", "")

    def want(self, placement: Placement) -> None: ...

    def retire(self, *, at_once: bool = False) -> None:
        Process.running -= {self.placement.endpoint}
        asyncio.get_running_loop().call_soon(self._gone, self)

    async def end(self) -> None:
        Process.running -= {self.placement.endpoint}


class Device:
    """Stands for `DeviceMemory`: each process holds 3000 MiB of 8192."""

    tells = False
    seen: set[int] = set()
    fresh = 0

    @property
    def free(self) -> int:
        return 8192 * MIB - self.held(range(1, 10))

    def held(self, pids: Collection[int]) -> int:
        alive = {int(name[1:]) for name in Process.running} & self.seen
        return sum(3000 * MIB for pid in pids if pid in alive)

    async def refresh(self, ours: Collection[int], *, fresh: bool) -> None:
        await asyncio.sleep(0)
        self.fresh += fresh
        self.seen = {int(name[1:]) for name in Process.running}
        self.tells = self.tells or bool(ours)


@pytest.mark.parametrize("limit", [7000 * MIB, 0])
def test_device_memory_decides_who_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(residents, "Supervised", Process)
    monkeypatch.setattr(resident, "resident_bytes", lambda _: 50 * MIB)  # on the host all of them would fit
    monkeypatch.setattr(residents, "_pinned", lambda _: False)
    monkeypatch.setattr(residents, "_LEAST_STAY_S", 0.0)
    Process.running = set()

    async def main() -> None:
        device: Any = Device()
        settings = AgentSettings("edge", "/l", str(tmp_path), SOC, models="lazy", memory_bytes=limit)
        held = Residents(settings, "edge-0", lambda: None, device)
        loop = asyncio.create_task(held.run())
        names = ("p1", "p2", "p3")
        held.place([Placement(name, f"sha256:{name}", f"/nowhere/{name}", "om", SOC) for name in names], ())
        async with asyncio.timeout(5):
            while [row.loads for row in held.reports()] != [1, 1, 1] or len(device.seen) < 3:
                await asyncio.sleep(0.005)  # each has been proven; of none was known before what it takes
            for name in names:
                held.unload((name, f"sha256:{name}", ""))
            while Process.running:
                await asyncio.sleep(0.005)
            for name in ("p1", "p2", "p3", "p1"):
                held.wake((name, f"sha256:{name}", ""))
                while held.models[name, f"sha256:{name}", ""].state != "ready":
                    await asyncio.sleep(0.005)
                while held.models[name, f"sha256:{name}", ""].memory_bytes != 3000 * MIB:
                    await asyncio.sleep(0.005)
                assert len(Process.running) <= 2
        assert {row.memory_bytes for row in held.reports() if row.state == "ready"} == {3000 * MIB}
        assert device.fresh >= 3
        loop.cancel()

    asyncio.run(main())
