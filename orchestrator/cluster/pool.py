"""A pool of the local site, as the site's processes hand it to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from orchestrator.environment.pool import Pool


@dataclass(frozen=True, slots=True)
class ScaleRule:
    """When a pool holds more slots, and when fewer; see `scaling`.

    Attributes:
        target_queue: Requests that wait or run, for each slot.
        up_after_s: How long there must be too few slots.
        down_after_s: How long there must be too many.
    """

    min_slots: int
    max_slots: int
    target_queue: float = 4.0
    up_after_s: float = 5.0
    down_after_s: float = 120.0


@dataclass(frozen=True, slots=True)
class LocalPool:
    """A pool of the local site: device slots, or their rehearsal on a CPU.

    Attributes:
        slots: Most slots that it ever holds.
        soc: SoC of all slots; of the first ones where `parts` says more.
        fraction: Part of a device that a slot takes.
        parts: SoC -> slots, in order; empty where all are `soc`.
        models: `always` or `lazy`.
        memory_bytes: For models in each slot; 0 = what is free.
        scale: None holds `slots` always.
    """

    slots: int = 1
    rehearsal: bool = True
    soc: str = ""
    fraction: float = 1.0
    parts: Mapping[str, int] = field(default_factory=dict[str, int])
    models: str = "always"
    memory_bytes: int = 0
    scale: ScaleRule | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the pool of `dataclasses.asdict`, with or without a way through JSON."""
        scale = data.get("scale")
        fields: dict[str, Any] = {**data, "scale": ScaleRule(**scale) if scale else None}
        return cls(**fields)

    @property
    def least_slots(self) -> int:
        """Slots that it holds when nothing waits; `up` waits for so many agents."""
        return self.slots if self.scale is None else self.scale.min_slots

    @property
    def socs(self) -> tuple[str, ...]:
        """SoC of each slot, by its number; empty texts where none is named."""
        rows = self.parts or {self.soc: self.slots}
        return tuple(soc for soc, slots in rows.items() for _ in range(slots))


def local_pool(pool: Pool) -> LocalPool:
    """Take over a pool of the environment."""
    rule = pool.autoscale
    scale = None
    if rule is not None:
        most = rule.max_slots or pool.slots
        scale = ScaleRule(rule.min_slots, most, rule.target_queue, rule.up_after, rule.down_after)
    return LocalPool(
        slots=scale.max_slots if scale is not None else pool.all_slots,
        rehearsal=pool.rehearsal,
        soc=pool.soc or "",
        fraction=pool.fraction,
        parts=dict(pool.parts) if pool.devices is not None else {},
        models=pool.models,
        memory_bytes=pool.memory or 0,
        scale=scale,
    )
