"""Before a rollout: is there memory for both generations? Every slot loads the canary beside the stable one.

What is known: what each loaded model holds (agents measure it), what a slot's models may take (the pool's `memory`), what the
device has (npu-smi, through the agent) and, for slots on this host, what the host has free. What is not known is said, not guessed:
a canary that was never loaded is taken to need its files and a process, or as much more than its files as the live one does.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, cast

from orchestrator.core.units import format_bytes
from orchestrator.ledger import Generation
from orchestrator.rollout.strategy import Strategy
from orchestrator.serving.runtimes.headroom import free_bytes
from orchestrator.serving.serve_settings import read_serve_settings

_PROCESS_BYTES: Final = 64 << 20
"""Of a process, besides the model's files; what agents take for a model that was never loaded."""
_MARGIN_BYTES: Final = 256 << 20
"""What agents leave free on a host without a limit."""


@dataclass(frozen=True, slots=True)
class Build:
    """What one generation loads.

    Attributes:
        bundle: Digest; with `variant` it says which report of an agent speaks of this build.
        file_bytes: Size of the files that a replica loads; by SoC where the pool has several, else under the empty text.
        stages: Processes besides the model's own.
    """

    generation: int
    endpoint: str
    bundle: str
    variants: tuple[str, ...] = ("",)
    file_bytes: Mapping[str, int] = field(default_factory=dict[str, int])
    stages: int = 0

    @classmethod
    def of(cls, generation: Generation) -> Self:
        """Describe a generation of the ledger by the files that it names on this machine."""
        builds = {str(build["soc"]): build for build in generation.builds}
        stages = read_serve_settings(Path(generation.path))
        return cls(
            generation.number,
            generation.endpoint,
            generation.bundle,
            tuple(str(build["variant"]) for build in builds.values()) or (generation.variant,),
            {
                soc: folder_bytes(Path(str(build.get("variant_path") or generation.path)))
                for soc, build in builds.items()
            }
            or {"": folder_bytes(Path(generation.variant_path or generation.path))},
            (stages.preprocess is not None) + (stages.postprocess is not None),
        )

    def files(self, soc: str) -> int:
        """Return the bytes that a slot with this SoC loads."""
        return self.file_bytes.get(soc, max(self.file_bytes.values(), default=0))


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """A pool as the environment has it: `memory_bytes` is the limit of each slot's models, 0 = none."""

    name: str
    lazy: bool = False
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CapacityAnswer:
    """Whether both generations fit.

    Attributes:
        fits: Nothing that is known speaks against it.
        text: What was found, with the numbers and what is assumed.
        offer: What fits instead; empty where it fits.
    """

    fits: bool
    text: str
    offer: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the answer, JSON-ready."""
        return {"fits": self.fits, "text": self.text, "offer": self.offer}


def folder_bytes(*folders: Path) -> int:
    """Return the size of all files below the folders; 0 for one that is not there."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def check(
    status: Mapping[str, Any],
    stable: Build | None,
    canary: Build,
    strategy: Strategy,
    pool: PoolFacts,
    *,
    slots: int | None = None,
    free: Mapping[str, float] | None = None,
) -> CapacityAnswer:
    """Judge whether the pool can hold the canary beside what it holds now.

    Args:
        status: `RouterAdmin.status()`.
        stable: What is live; None where nothing is.
        canary: What is to be tried; already loaded models are not counted twice.
        strategy: How; in a lazy pool `direct` needs room for one generation only.
        pool: The pool's settings.
        slots: How many slots the endpoint takes; None = all.
        free: Free bytes by host name, in place of a look at this host.
    """
    agents = [row for row in _rows(status, "agents") if row.get("pool") == pool.name]
    if not agents:
        return CapacityAnswer(False, f"pool {pool.name!r} has no agent", "orchestrate up, or another pool")
    taken = agents if slots is None else agents[:slots]
    free = {socket.gethostname(): free_bytes()} if free is None else free
    need = {id(agent): _need(agent, stable, canary) for agent in taken}
    if pool.lazy:
        return _judge_lazy(taken, stable, canary, strategy, pool, need)
    return _judge(taken, need, pool, canary, free)


def _judge(
    agents: Sequence[Mapping[str, Any]],
    need: Mapping[int, int],
    pool: PoolFacts,
    canary: Build,
    free: Mapping[str, float],
) -> CapacityAnswer:
    unknown: set[str] = set()
    for agent in agents:
        short = _short_in_slot(agent, need[id(agent)], pool)
        if short:
            return CapacityAnswer(False, short, _offer(canary, pool))
        if not pool.memory_bytes and str(agent.get("host")) not in free:
            unknown.add(str(agent.get("host")))
    for host, rest in free.items():
        there = [agent for agent in agents if agent.get("host") == host and not _device_memory(agent)]
        wanted = sum(need[id(agent)] for agent in there)
        room = rest - _MARGIN_BYTES
        if wanted and wanted > room:
            each = max(need[id(agent)] for agent in there)
            fewer = int(max(0.0, room) // each)
            text = (
                f"generation {canary.generation} needs {format_bytes(each)} in each of {len(there)} slots on {host}, "
                f"{format_bytes(wanted)} together; {format_bytes(int(max(0.0, room)))} are free"
            )
            return CapacityAnswer(False, text, _offer(canary, pool, fewer))
    each = max(need.values())
    said = (
        f"; what {', '.join(sorted(unknown))} has free is not known here, its agent refuses what does not fit"
        if unknown
        else ""
    )
    already = "is loaded already" if not each else f"needs about {format_bytes(each)} in each of {len(agents)} slots"
    return CapacityAnswer(True, f"generation {canary.generation} {already}, and fits beside what is there{said}")


def _judge_lazy(
    agents: Sequence[Mapping[str, Any]],
    stable: Build | None,
    canary: Build,
    strategy: Strategy,
    pool: PoolFacts,
    need: Mapping[int, int],
) -> CapacityAnswer:
    """A lazy slot makes room, so that one generation at a time may do; but a split would load and unload all the time."""
    for agent in agents:
        most, source = _limit(agent, pool)
        one = need[id(agent)]
        both = one + (_held(agent, stable) if stable is not None and one else 0)
        if not most:
            continue
        if one > most:
            text = (
                f"generation {canary.generation} needs {format_bytes(one)} in a slot, {source} is {format_bytes(most)}"
            )
            return CapacityAnswer(False, text, f"raise `memory` of pool {pool.name!r}, or use a pool with more")
        if both > most and strategy.steps:
            text = (
                f"both generations need {format_bytes(both)} in a slot, {source} is {format_bytes(most)}: "
                "while requests are split, each would push out the other"
            )
            return CapacityAnswer(False, text, "`direct: {}` in the recipe's rollout: one generation at a time fits")
    return CapacityAnswer(
        True, f"pool {pool.name!r} is lazy: a slot loads a generation when it is asked for, and makes room"
    )


def _need(agent: Mapping[str, Any], stable: Build | None, canary: Build) -> int:
    """Return the bytes that the canary adds to a slot; 0 where it is loaded there."""
    if _held(agent, canary):
        return 0
    soc = str(agent.get("soc", ""))
    files = canary.files(soc)
    plain = files + _PROCESS_BYTES * (1 + canary.stages)
    held = _held(agent, stable) if stable is not None else 0
    if not held or stable is None or not stable.files(soc) or _device_memory(agent):
        return plain  # what agents measure is the host's memory, not the device's
    return max(plain, round(held * files / stable.files(soc)) if files > stable.files(soc) else held)


def _held(agent: Mapping[str, Any], build: Build | None) -> int:
    if build is None:
        return 0
    return sum(
        int(row.get("memory_bytes", 0))
        for row in _rows(agent, "replicas")
        if (row.get("endpoint"), row.get("bundle")) == (build.endpoint, build.bundle)
        and row.get("variant", "") in build.variants
        and row.get("state") == "ready"
    )


def _limit(agent: Mapping[str, Any], pool: PoolFacts) -> tuple[int, str]:
    if pool.memory_bytes:
        return pool.memory_bytes, f"`memory` of pool {pool.name!r}"
    device = _device_memory(agent)
    return (device[1], "the device's memory") if device else (0, "")


def _short_in_slot(agent: Mapping[str, Any], need: int, pool: PoolFacts) -> str:
    """Return why a slot has no room, by the pool's limit or by what its device says; empty where neither speaks against it."""
    if not need:
        return ""
    name = f"slot {agent.get('slot')} of pool {pool.name!r}"
    if pool.memory_bytes:
        held = sum(int(row.get("memory_bytes", 0)) for row in _rows(agent, "replicas"))
        if held + need > pool.memory_bytes:
            return (
                f"{name} holds {format_bytes(held)} and would need {format_bytes(need)} more; "
                f"its `memory` is {format_bytes(pool.memory_bytes)}"
            )
    device = _device_memory(agent)
    if device and device[0] + need > device[1]:
        return (
            f"the device of {name} has {format_bytes(device[1] - device[0])} of {format_bytes(device[1])} free, "
            f"{format_bytes(need)} are needed"
        )
    return ""


def _device_memory(agent: Mapping[str, Any]) -> tuple[int, int] | None:
    figures = cast("Mapping[str, Any]", agent.get("figures") or {})
    used, most = figures.get("memory_used_bytes"), figures.get("memory_bytes")
    return (int(used), int(most)) if used is not None and most else None


def _offer(canary: Build, pool: PoolFacts, fewer: int = 0) -> str:
    return "; or ".join(_offers(canary, pool, fewer))


def _offers(canary: Build, pool: PoolFacts, fewer: int) -> Iterator[str]:
    if fewer > 0:
        yield f"`orchestrate endpoint scale {canary.endpoint} --slots {fewer}`, roll out, and scale up again"
    if pool.memory_bytes:
        yield f"raise `memory` of pool {pool.name!r}, where its devices have more"
    yield f"`models: lazy` for pool {pool.name!r} and `direct: {{}}` in the recipe's rollout: one generation at a time"


def _rows(body: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    return cast("Sequence[Mapping[str, Any]]", body.get(name) or ())
