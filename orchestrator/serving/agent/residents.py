"""The models of one slot. Of an eager pool all run; of a lazy one a model is loaded when it is asked for, one at a time, and
the one that was used longest ago makes room. An unloaded model has been loaded and checked before: its proof lies on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from pathlib import Path
from typing import Final

from orchestrator.core.errors import IntegrityError
from orchestrator.serving.agent.device_memory import DeviceMemory
from orchestrator.serving.agent.group import Groups
from orchestrator.serving.agent.resident import Key, Model, overhead_bytes
from orchestrator.serving.agent.room import Proofs, folder_bytes, no_room, room
from orchestrator.serving.agent.supervise import Supervised
from orchestrator.serving.config import AgentSettings
from orchestrator.serving.link.reports import ReplicaReport
from orchestrator.serving.link.wire import Placement
from orchestrator.serving.replica.stages import with_stages
from orchestrator.serving.serve_settings import read_serve_settings

_log: Final = logging.getLogger("orchestrator.serving.agent")
_LEAST_STAY_S, _MOST_STAY_S = 0.2, 5.0
"""A model stays for at least the time that its load took, within these: whoever waits for it must get its answer."""
_FIRST_RETRY_S, _MAX_RETRY_S = 0.5, 60.0
_HEALTHY_S: Final = 5.0
_POLL_S: Final = 0.05
_SETTLE_S: Final = 0.02
"""Before a choice of what is unloaded: a replica that has just answered says so a moment later."""
_SAMPLE_S: Final = 2.0


class Residents:
    """Everything here runs in the agent's event loop.

    Args:
        settings: The agent's.
        slot: The slot's name.
        changed: Called when the reports change.
        device: What npu-smi says of the slot's device; None where there is none.
    """

    def __init__(
        self, settings: AgentSettings, slot: str, changed: Callable[[], None], device: DeviceMemory | None = None
    ) -> None:
        self._device = device
        self._weighing: asyncio.Task[None] | None = None
        self._settings = settings
        self._slot = slot
        self._tell = changed
        self._moved = asyncio.Event()
        self._wanted: dict[Key, bool] = {}
        self._proofs = Proofs(Path(settings.state) / "proven")
        self._tasks: set[asyncio.Task[None]] = set()
        self._groups = Groups(settings, slot)
        self.models: dict[Key, Model] = {}

    # --- what the router says ---

    def place(self, placements: Iterable[Placement], elsewhere: Collection[str]) -> None:
        """Run these and no others; what has gone is drained by the router and ends by itself, or is ended later."""
        groups: dict[Key, list[Placement]] = {}
        for part in with_stages(placements):
            groups.setdefault((part.endpoint, *part.build), []).append(part)
        for key, parts in groups.items():
            model = self.models.get(key)
            if model is None:
                model = self.models[key] = Model(parts)
            self._place_one(model, parts)
        for key, model in list(self.models.items()):
            if key not in groups:
                self._remove(model, at_once=key[0] in elsewhere)
        self._change()

    def _place_one(self, model: Model, parts: list[Placement]) -> None:
        model.parts, model.placed = parts, True
        model.lazy = self._settings.models == "lazy" and not _pinned(parts[0])
        if not model.lazy:
            self._start(model)
        elif model.running:
            if model.state in ("loading", "ready"):
                self._start(model)
        elif not model.proven:
            proof = self._proofs.read(parts[0])
            model.proven, model.memory_bytes = proof is not None, proof or 0
            if not model.proven:
                self._wanted.setdefault(model.key, False)

    def _start(self, model: Model) -> None:
        for part in model.parts:
            running = model.running.get(part.stage)
            if running is not None:
                running.want(part)
                continue
            model.running[part.stage] = Supervised(
                part,
                name=self._slot,
                settings=self._settings,
                changed=lambda: self._part_changed(model),
                gone=lambda ended: self._forget(model, ended),
                load="lazy" if model.lazy else "always",
                groups=self._groups,
            )

    def _remove(self, model: Model, *, at_once: bool) -> None:
        model.placed = False
        self._wanted.pop(model.key, None)
        for part in list(model.running.values()):
            part.retire(at_once=at_once)
        if not model.running:
            del self.models[model.key]

    def wake(self, key: Key) -> None:
        """Load the model: a request waits for it."""
        model = self.models.get(key)
        if model is not None and model.lazy and (model.state != "failed" or model.retry_at <= time.monotonic()):
            self._wanted[key] = model.queued = True
            self._change()

    def unload(self, key: Key) -> None:
        """Unload the model: an operator wants it. The next request loads it again."""
        model = self.models.get(key)
        if model is not None and model.lazy and model.state == "ready":
            self._later(self._unload(model))

    def reports(self) -> list[ReplicaReport]:
        """Return what to tell the router."""
        now = time.monotonic()
        return [report for model in self.models.values() for report in model.reports(now)]

    # --- what processes say ---

    def _change(self) -> None:
        self._moved.set()
        self._tell()

    def _part_changed(self, model: Model) -> None:
        broken = [part.report() for part in model.running.values() if part.report().state == "failed"]
        if model.lazy and model.state == "ready" and broken:
            long = time.monotonic() - model.ready_at > _HEALTHY_S
            self._later(self._drop(model, broken[0].error, at_once=long))
        self._change()

    def _forget(self, model: Model, ended: Supervised) -> None:
        model.running = {stage: part for stage, part in model.running.items() if part is not ended}
        if not model.running and not model.placed and self.models.get(model.key) is model:
            del self.models[model.key]
        self._change()

    # --- loading, one at a time ---

    async def run(self) -> None:
        """Load what is wanted, for ever."""
        sampling = asyncio.create_task(self._sample())
        try:
            while True:
                await self._load(await self._next())
        finally:
            sampling.cancel()
            if self._weighing is not None:
                self._weighing.cancel()

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_S)
            if self._device is not None:
                await self._device.refresh(self._pids(), fresh=False)
            before = [model.memory_bytes for model in self.models.values()]
            for model in self.models.values():
                model.measure(self._device)
            now = [model.memory_bytes for model in self.models.values()]
            if any(abs(new - old) > old / 10 for old, new in zip(before, now, strict=True)):
                self._tell()

    async def _next(self) -> Model:
        """Return the next model to load: those that requests wait for come first."""
        while True:
            self._moved.clear()
            now, pause_s = time.monotonic(), 3600.0
            for key in sorted(self._wanted, key=lambda key: not self._wanted[key]):
                model = self.models.get(key)
                if model is None or not model.lazy or model.state in ("ready", "loading"):
                    del self._wanted[key]
                    if model is not None:
                        model.queued = False
                elif model.retry_at > now or model.running:
                    pause_s = min(pause_s, max(_POLL_S, model.retry_at - now))
                else:
                    woken = self._wanted.pop(key)
                    proof = None if model.proven or woken else self._proofs.read(model.parts[0])
                    if proof is None:
                        return model
                    model.proven, model.memory_bytes = True, proof  # another slot was faster
                    self._tell()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), pause_s)

    async def _load(self, model: Model) -> None:
        begun = time.monotonic()
        model.state, model.error, model.queued = "loading", "", False
        self._tell()
        reason = await self._make_room(model)
        if reason:
            await self._drop(model, reason)
            return
        self._start(model)
        while model.placed and model.lazy and model.running:
            self._moved.clear()
            states = {part.report().state for part in model.running.values()}
            if "failed" in states:
                await self._drop(model, next(p.report().error for p in model.running.values() if p.report().error))
                return
            if states == {"ready"} and len(model.running) == len(model.parts):
                self._loaded(model, begun)
                return
            await self._moved.wait()
        model.state = "cold"

    def _loaded(self, model: Model, begun: float) -> None:
        now = time.monotonic()
        model.state, model.error, model.tail, model.failures = "ready", "", "", 0
        model.ready_at, model.load_s, model.retry_at = now, now - begun, 0.0
        model.loads += 1
        model.proven = True
        model.measure(self._device)
        self._proofs.write(model.parts[0], model.memory_bytes)
        self._tell()
        if self._device is not None:
            self._weighing = asyncio.create_task(self._weigh(model, self._device))  # it takes seconds; the model serves

    async def _weigh(self, model: Model, device: DeviceMemory) -> None:
        await device.refresh(self._pids(), fresh=True)
        if model.state == "ready":
            model.measure(device)
            self._proofs.write(model.parts[0], model.memory_bytes)
            self._tell()

    def _pids(self) -> list[int]:
        return [pid for model in self.models.values() for pid in model.pids]

    async def _drop(self, model: Model, error: str, *, at_once: bool = False) -> None:
        """The model cannot run: end what there is of it, and try again after a pause that grows."""
        _log.warning("%s cannot be served: %s", model.key[0], error)
        model.failures += 0 if at_once else 1
        pause_s = 0.0 if at_once else min(_MAX_RETRY_S, _FIRST_RETRY_S * 2 ** min(model.failures - 1, 10))
        model.state, model.error = ("cold", "") if at_once else ("failed", error)
        model.retry_at = time.monotonic() + pause_s
        model.tail = "" if at_once else "\n".join(part.tail() for part in model.running.values())[-1000:]
        await asyncio.gather(*(part.end() for part in model.running.values()))
        model.running = {}
        if not model.placed:
            self.models.pop(model.key, None)
        elif not model.proven:
            self._wanted.setdefault(model.key, False)
        self._change()

    async def _make_room(self, model: Model) -> str:
        """Unload what was used longest ago until the model fits; returns why it never will."""
        need = model.memory_bytes or folder_bytes([part.variant_path or part.path for part in model.parts])
        if self._weighing is not None:
            await self._weighing  # what was loaded before is known first
        if self._device is not None and self._device.tells:
            model.memory_bytes = need  # until npu-smi has seen it: another load may come first
        limit = self._settings.memory_bytes
        while need > room(limit, self._held(), free := await self._free()):
            await asyncio.sleep(_SETTLE_S)
            residents = [m for m in self.models.values() if m.lazy and m.state == "ready"]
            if not residents:
                if any(m.state == "stopping" for m in self.models.values()):
                    await asyncio.sleep(_POLL_S)
                    continue
                return no_room(need, limit, self._held(), free)
            oldest = min(residents, key=lambda m: m.used_at)
            stay_s = min(_MOST_STAY_S, max(_LEAST_STAY_S, oldest.load_s))
            if time.monotonic() - oldest.ready_at >= stay_s:
                await self._unload(oldest)
            else:
                await asyncio.sleep(_POLL_S)
        return ""

    async def _free(self) -> int | None:
        """Return what the slot's device has free, where that decides and npu-smi tells."""
        if self._device is None or self._settings.memory_bytes or not self._device.tells:
            return None
        await self._device.refresh((), fresh=True)
        return self._device.free

    def _held(self) -> int:
        for model in self.models.values():
            model.measure(self._device)
        held = sum(model.memory_bytes for model in self.models.values() if model.running)
        return held + overhead_bytes(self.models.values(), self._device)

    async def _unload(self, model: Model) -> None:
        """Drain the model and end it: its replicas ask the routers for no more, and answer what they have."""
        model.state = "stopping"
        model.unloads += 1
        for part in list(model.running.values()):
            part.retire(at_once=True)
        while model.running:
            self._moved.clear()
            await self._moved.wait()
        if model.state == "stopping":
            model.state = "cold"
        self._change()

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """End every replica."""
        self._groups.hurry()
        parts = [part for model in self.models.values() for part in model.running.values()]
        await asyncio.gather(*(part.end() for part in parts), return_exceptions=True)
        await self._groups.gone()


def _pinned(placement: Placement) -> bool:
    try:
        return read_serve_settings(Path(placement.path)).pinned
    except IntegrityError:
        return False
