"""One model of a slot: its processes, its state, and what the router is told of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from orchestrator.core.processes import resident_bytes
from orchestrator.serving.agent.device_memory import DeviceMemory
from orchestrator.serving.agent.supervise import Supervised
from orchestrator.serving.link.reports import ReplicaReport
from orchestrator.serving.link.wire import Placement
from orchestrator.serving.serve_settings import MODEL

Key = tuple[str, str, str]
"""Endpoint, bundle, variant."""


class Model:
    """One model that the table places here; `parts` are its stages, `running` those that have a process."""

    def __init__(self, parts: list[Placement]) -> None:
        self.parts = parts
        self.running: dict[str, Supervised] = {}
        self.lazy = self.proven = self.queued = False
        self.placed = True
        self.state, self.error, self.tail = "cold", "", ""
        self.failures = self.loads = self.unloads = self.memory_bytes = 0
        self.retry_at = self.ready_at = self.load_s = 0.0

    @property
    def key(self) -> Key:
        """What a wake or unload frame names."""
        return (self.parts[0].endpoint, *self.parts[0].build)

    @property
    def used_at(self) -> float:
        """When it computed last, or was loaded; monotonic seconds."""
        return max([self.ready_at, *(part.used_at for part in self.running.values())])

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return [pid for part in self.running.values() if (pid := part.report().pid)]

    @property
    def shared(self) -> list[tuple[int, int]]:
        """Of its parts that share a process: that process, and how many bytes their load took of it."""
        return [(part.report().pid, size) for part in self.running.values() if (size := part.shared_bytes) is not None]

    def measure(self, device: DeviceMemory | None = None) -> None:
        """Take in what it holds: its own processes do, and its loads took of one that it shares."""
        shared = self.shared
        own = set(self.pids) - {pid for pid, _ in shared}
        self.memory_bytes = _held(own, device) + sum(size for _, size in shared) or self.memory_bytes

    def reports(self, now: float) -> list[ReplicaReport]:
        """Return what the router is told."""
        facts = {
            "load": "lazy" if self.lazy else "always",
            "proven": self.lazy and self.proven and self.state != "failed",
            "loads": self.loads,
            "unloads": self.unloads,
            "load_s": round(self.load_s, 3),
            "memory_bytes": self.memory_bytes,
            "retry_s": round(max(0.0, self.retry_at - now), 3) if self.state == "failed" else 0.0,
        }
        if not self.lazy:
            return [replace(part.report(), **(facts if s == MODEL else {})) for s, part in self.running.items()]
        one = self.parts[0]
        pid = self.running[MODEL].report().pid if MODEL in self.running else 0
        state = "starting" if not self.proven and self.state in ("cold", "loading") else self.state
        if self.queued and state in ("cold", "starting"):
            state = "loading"  # other loads come first; nobody else needs to be asked
        row = ReplicaReport(
            one.endpoint, one.bundle, state, self.failures, pid, self.error[:500], self.tail, one.variant
        )
        return [replace(row, failures=self.failures, **facts)]


def overhead_bytes(models: Iterable[Model], device: DeviceMemory | None) -> int:
    """Return what shared processes hold besides their models: interpreter, libraries, the device's context."""
    processes: dict[int, int] = {}
    for model in models:
        for pid, size in model.shared:
            processes[pid] = processes.get(pid, 0) + size
    return sum(max(0, _held([pid], device) - size) for pid, size in processes.items())


def _held(pids: Collection[int], device: DeviceMemory | None) -> int:
    """Return what processes hold: on the device where npu-smi tells, else on the host."""
    if device is not None and device.tells:
        return device.held(pids)
    return sum(resident_bytes(pid) for pid in pids)
