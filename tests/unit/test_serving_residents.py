"""Lazy models: the router's choice of who loads one, and the agent's choice of who makes room; no processes, no sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.rollout.readiness import readiness
from orchestrator.serving.agent import resident, residents
from orchestrator.serving.agent.residents import Residents
from orchestrator.serving.config import AgentSettings
from orchestrator.serving.dispatch.lanes import Lane
from orchestrator.serving.dispatch.waking import Waking
from orchestrator.serving.link.frames import Kind
from orchestrator.serving.link.reports import ReplicaReport
from orchestrator.serving.link.wire import Placement
from orchestrator.serving.table import Generation

DEVICE = "cpu (rehearsal)"
MIB = 1 << 20


class FakeProcess:
    """Stands for `Supervised`: ready after a moment, unless its endpoint is `bad`."""

    running: set[str] = set()
    loading = most_loading = 0
    sizes: Mapping[int, int] = {}

    def __init__(self, placement: Placement, *, changed: Any, gone: Any, **_: Any) -> None:
        self.placement, self._changed, self._gone = placement, changed, gone
        self.used_at, self._state, self._error = 0.0, "starting", ""
        self.shared_bytes = None
        FakeProcess.loading += 1
        FakeProcess.most_loading = max(FakeProcess.most_loading, FakeProcess.loading)
        asyncio.get_running_loop().call_later(0.01, self._loaded)

    def _loaded(self) -> None:
        FakeProcess.loading -= 1
        bad = self.placement.endpoint == "bad"
        self._state, self._error = ("failed", "no such operator") if bad else ("ready", "")
        FakeProcess.running |= {self.placement.endpoint}
        self._changed()

    def report(self) -> ReplicaReport:
        one = self.placement
        return ReplicaReport(one.endpoint, one.bundle, self._state, 0, 7, self._error, "")

    def want(self, placement: Placement) -> None: ...

    def tail(self) -> str:
        return "its log"

    def retire(self, *, at_once: bool = False) -> None:
        FakeProcess.running -= {self.placement.endpoint}
        asyncio.get_running_loop().call_soon(self._gone, self)

    async def end(self) -> None:
        FakeProcess.running -= {self.placement.endpoint}


def placed(name: str) -> Placement:
    return Placement(name, f"sha256:{name}", f"/nowhere/{name}", "onnx-cpu", DEVICE)


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentSettings:
    FakeProcess.running, FakeProcess.loading, FakeProcess.most_loading = set(), 0, 0
    monkeypatch.setattr(residents, "Supervised", FakeProcess)
    monkeypatch.setattr(resident, "resident_bytes", lambda pid: 70 * MIB if pid else 0)
    monkeypatch.setattr(residents, "_pinned", lambda placement: placement.endpoint == "pinned")
    monkeypatch.setattr(residents, "_LEAST_STAY_S", 0.0)
    monkeypatch.setattr(residents, "_FIRST_RETRY_S", 0.1)
    return AgentSettings("edge", "/l", str(tmp_path), DEVICE, models="lazy", memory_bytes=215 * MIB)


def test_the_one_used_longest_ago_makes_room_and_a_pinned_one_never(settings: AgentSettings) -> None:
    async def main() -> None:
        held = Residents(settings, "edge-0", lambda: None)
        loop = asyncio.create_task(held.run())
        held.place([placed(name) for name in ("pinned", "a", "b", "c", "d")], ())
        await until(lambda: all(row.proven for row in held.reports() if row.load == "lazy"))
        assert FakeProcess.most_loading <= 2  # the pinned one at once, the others one after the other
        assert "pinned" in FakeProcess.running
        for name in ("a", "b", "a"):
            held.wake(("a" if name == "a" else name, f"sha256:{name}", ""))
            await until(lambda name=name: name in FakeProcess.running)
            model = held.models[name, f"sha256:{name}", ""]
            await until(lambda model=model: model.state == "ready")
            model.running["model"].used_at = asyncio.get_running_loop().time()
        held.wake(("c", "sha256:c", ""))
        await until(lambda: "c" in FakeProcess.running)
        assert FakeProcess.running == {"pinned", "a", "c"}
        counted = {row.endpoint: row for row in held.reports()}
        assert (counted["b"].state, counted["b"].unloads >= 1, counted["c"].loads >= 1) == ("cold", True, True)
        held.unload(("c", "sha256:c", ""))
        await until(lambda: FakeProcess.running == {"pinned", "a"})
        loop.cancel()

    asyncio.run(main())


def test_a_model_that_cannot_be_loaded_is_tried_after_pauses_that_grow(settings: AgentSettings) -> None:
    async def main() -> None:
        held = Residents(settings, "edge-0", lambda: None)
        loop = asyncio.create_task(held.run())
        held.place([placed("bad")], ())
        model = held.models["bad", "sha256:bad", ""]
        await until(lambda: model.failures >= 1)
        (row,) = held.reports()
        assert (row.state, row.error, row.log_tail, row.proven) == ("failed", "no such operator", "its log", False)
        for _ in range(50):
            held.wake(model.key)
        await until(lambda: model.failures >= 2)
        assert 0.15 < model.retry_at - asyncio.get_running_loop().time() <= 0.2
        held.place([placed("pinned"), placed("large")], ())
        held.models["large", "sha256:large", ""].memory_bytes = 900 * MIB
        await until(lambda: "large" in {row.endpoint for row in held.reports() if row.error})
        assert "needs 900 MiB" in next(row.error for row in held.reports() if row.endpoint == "large")
        loop.cancel()

    asyncio.run(main())


class FakeAgent:
    def __init__(self, *reports: ReplicaReport) -> None:
        self.reports, self.wakes = reports, 0
        self.told: list[tuple[Kind, Any]] = []

    def tell(self, kind: Kind, head: Any) -> None:
        self.told.append((kind, head["endpoint"]))


def report(name: str, state: str, **facts: Any) -> ReplicaReport:
    return ReplicaReport(name, f"sha256:{name}", state, 0, 0, facts.pop("error", ""), "", load="lazy", **facts)


def lane_of(name: str) -> Lane:
    return Lane(name, Generation(1, f"sha256:{name}", "/none", "onnx-cpu", 100, "live", DEVICE), 0.0)


def test_the_agent_with_the_fewest_loads_and_the_most_room_is_asked_once_in_a_while() -> None:
    full = FakeAgent(report("a", "cold", proven=True), report("x", "ready", memory_bytes=9))
    busy = FakeAgent(report("a", "cold", proven=True), report("y", "loading"))
    idle = FakeAgent(report("a", "cold", proven=True))
    lane = lane_of("a")
    waking = Waking([full, busy, idle], [lane])
    assert waking.reported(100.0) == []
    assert (lane.lazy, lane.cold) == (True, 3)
    assert waking.wake(lane, 100.0)
    assert waking.wake(lane, 100.2)
    assert (full.told, busy.told, idle.told) == ([], [], [(Kind.WAKE, "a")])
    assert waking.wake(lane, 101.0)
    assert full.told == [(Kind.WAKE, "a")]  # the first has not answered


def test_a_model_that_no_agent_can_load_is_left_alone_until_it_is_time() -> None:
    agent = FakeAgent(report("a", "failed", error="no memory", retry_s=4.0))
    lane = lane_of("a")
    waking = Waking([agent], [lane])
    waking.reported(100.0)
    assert (lane.trouble, lane.blocked_until, lane.cold) == ("no memory", 104.0, 0)
    assert not waking.wake(lane, 103.0)
    assert waking.wake(lane, 104.0)
    assert agent.told == [(Kind.WAKE, "a")]


def test_a_lazy_generation_is_ready_once_every_slot_has_proven_it() -> None:
    deployed: Any = SimpleNamespace(endpoint="a", number=1, pool="edge", bundle="sha256:a")

    def status(*reports: ReplicaReport, cold: int, ready: int = 0) -> dict[str, Any]:
        agents = [{"pool": "edge", "version": 3, "replicas": [row.to_json()]} for row in reports]
        return {"agents": agents, "generations": [{"endpoint": "a", "generation": 1, "ready": ready, "cold": cold}]}

    starting, cold = report("a", "starting"), report("a", "cold", proven=True)
    assert not readiness(status(cold, starting, cold=1), deployed, 3).ready
    assert readiness(status(cold, cold, cold=2), deployed, 3).ready
    assert readiness(status(cold, report("a", "ready", proven=True), cold=1, ready=1), deployed, 3).ready


@pytest.mark.parametrize("row", [3, {}, {"inputs": 3}, {"inputs": [3], "outputs": [], "max_batch": 1}])
def test_a_damaged_memory_of_signatures_keeps_no_router_from_its_table(tmp_path: Path, row: object) -> None:
    lane, memory = lane_of("m"), tmp_path / "signatures.json"
    memory.write_text(json.dumps({f"{lane.generation.bundle} {lane.generation.variant} model": row}))
    Waking([], [lane], memory).recall(lane)
    assert lane.signature is None
