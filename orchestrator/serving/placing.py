"""Which slot of a pool runs which endpoints. Pure.

An endpoint that does not take all slots takes those with the highest hash of (endpoint, slot): fewer slots are a part of more
slots, and a slot that comes or goes moves only what it takes itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import sha256

from orchestrator.serving.link.wire import AgentHello, Placement
from orchestrator.serving.table import RoutingTable


@dataclass(frozen=True, slots=True)
class Placing:
    """What one slot is told.

    Attributes:
        placements: What it runs.
        elsewhere: Endpoints of its pool that other slots run: what is left of them here ends as soon as it is idle.
    """

    placements: tuple[Placement, ...]
    elsewhere: tuple[str, ...]


def slot_name(agent: AgentHello) -> str:
    """Return what tells a slot from the others of its pool."""
    return f"{agent.host}/{agent.slot}"


def chosen(endpoint: str, slots: int | None, present: Iterable[str]) -> Collection[str]:
    """Return the slots that an endpoint takes.

    Args:
        endpoint: Its name.
        slots: How many; None = all.
        present: Names of the slots that there are.
    """
    names = sorted(set(present))
    if slots is None or slots >= len(names):
        return names
    return sorted(names, key=lambda name: sha256(f"{endpoint}\0{name}".encode()).digest())[-slots:]


def place(table: RoutingTable, agent: AgentHello, agents: Iterable[AgentHello]) -> Placing:
    """Return what an agent must run.

    Args:
        table: The routing table.
        agent: One of `agents`.
        agents: All that are there, of whatever pool.
    """
    peers = [other for other in agents if other.pool == agent.pool]
    here, found, elsewhere = slot_name(agent), list[Placement](), dict[str, None]()
    for endpoint, generation in table.placements(agent.pool, agent.soc):
        able = [slot_name(peer) for peer in peers if any(g.for_slot(peer.soc) for g in endpoint.generations)]
        if here in chosen(endpoint.name, endpoint.slots, [*able, here]):
            g = generation
            found.append(Placement(endpoint.name, g.bundle, g.path, g.runtime, g.device, g.variant, g.variant_path))
        else:
            elsewhere[endpoint.name] = None
    return Placing(tuple(found), tuple(elsewhere))


def is_shared_out(table: RoutingTable, pool: str) -> bool:
    """Tell whether some endpoint of the pool does not take all slots: then what a slot runs depends on the others."""
    return any(e.pool == pool and e.slots is not None for e in table.endpoints.values())
