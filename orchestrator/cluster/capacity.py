"""Can the cluster hold what a step asks? Pure; asked before work is handed over, because Ray would wait for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.core.errors import NoCapacity


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """One live node: Ray's resource names to amounts (CPU, GPU, NPU, custom)."""

    name: str
    total: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is missing: `fits` of `workers` workers find a place; `resource` is the one that runs out."""

    resource: str
    per_worker: float
    workers: int
    fits: int
    total: float


def find_shortage(nodes: Sequence[NodeCapacity], per_worker: Mapping[str, float], workers: int) -> Shortage | None:
    """Return why `workers` workers of `per_worker` each can never run at once on `nodes`, or None.

    A worker lies on one node, so totals over the cluster are not enough: two nodes with half a GPU each hold no worker.
    """
    asked = {name: amount for name, amount in per_worker.items() if amount > 0}
    if not asked:
        return None
    fits = sum(_fits(node, asked) for node in nodes)
    if fits >= workers:
        return None
    scarce = min(asked, key=lambda name: sum(_fits(node, {name: asked[name]}) for node in nodes))
    total = sum(node.total.get(scarce, 0.0) for node in nodes)
    return Shortage(scarce, asked[scarce], workers, fits, total)


def require_capacity(
    nodes: Sequence[NodeCapacity], per_worker: Mapping[str, float], workers: int, *, cluster: str
) -> None:
    """Raise when the workers can never run at once.

    Raises:
        NoCapacity: Named resource, what is asked, what the cluster has.
    """
    short = find_shortage(nodes, per_worker, workers)
    if short is None:
        return
    raise NoCapacity(
        f"{cluster} holds {short.fits} of {short.workers} workers: each needs {short.per_worker:g} {short.resource}, "
        f"the cluster has {short.total:g} on {len(nodes)} node(s)",
        hint="ask for fewer workers or less per worker, or use a larger cluster",
        details={"resource": short.resource, "fits": short.fits, "workers": short.workers, "total": short.total},
    )


def _fits(node: NodeCapacity, asked: Mapping[str, float]) -> int:
    # 1e-9: Ray keeps resources as fixed-point numbers; 3 x 0.1 of 0.3 must count as three.
    return min(int(node.total.get(name, 0.0) / amount + 1e-9) for name, amount in asked.items())
