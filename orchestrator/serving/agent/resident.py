"""One model of a slot: its processes, its state, and what the router is told of it."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.serving.agent.device_memory import DeviceMemory
from orchestrator.serving.agent.room import resident_bytes
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

    def measure(self, device: DeviceMemory | None = None) -> None:
        """Take in what its processes hold: on the device where npu-smi tells, else on the host."""
        if device is not None and device.tells:
            found = device.held(self.pids)
        else:
            found = sum(resident_bytes(pid) for pid in self.pids)
        self.memory_bytes = found or self.memory_bytes

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
