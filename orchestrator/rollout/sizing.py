"""How many slots carry a load within a latency: a queue with service in batches, from a measured curve. Pure.

The model, for batches of b rows on n equal slots at rho = rps / (n * b / mean(b)):
* A slot takes the next batch, at most b rows, when it is free. Requests of one row arrive at random (Poisson), shared evenly.
* The queue that a batch leaves behind exceeds q rows with probability z**-q at most, z > 1 the root of rho * (z - 1) = ln z
  (Lundberg's bound, with the generating function of Poisson arrivals in one batch's time; the same for every b).
* A request waits for the batch that runs, for the batches before it, and for its own. So
  p99 <= overhead + delay + p99(b) * (2 + ln(100) / (b * ln z)).
It is on the safe side: the running batch is counted whole, and batches at low load are smaller than b.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from orchestrator.rollout.curves import Curve, Point

UTILISATION: Final = 0.7
"""Share of a slot's time that is planned for; the rest is for what no model knows."""
MOST_SLOTS: Final = 100_000
_STEPS: Final = 80
_LN_100: Final = math.log(100)


@dataclass(frozen=True, slots=True)
class Plan:
    """One batch size, and what it takes.

    Attributes:
        slots: How many are needed; 0 where no number of them holds the latency.
        per_slot_rps: What one slot gives at the cap of utilisation.
        utilisation: Of each slot, 0 to 1.
        p99_ms: Bound of the latency with so many slots; with `MOST_SLOTS` where `slots` is 0.
    """

    batch: int
    slots: int
    per_slot_rps: float
    utilisation: float
    p99_ms: float

    def to_json(self) -> dict[str, Any]:
        """Return the plan, JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sizing:
    """The answer.

    Attributes:
        best: The fewest slots; None where no batch size holds the latency.
        plans: Every measured batch size.
        assumptions: What must hold for it to be true, one sentence each.
    """

    best: Plan | None
    plans: tuple[Plan, ...]
    assumptions: tuple[str, ...]


def size(
    curve: Curve,
    rps: float,
    p99_ms: float,
    *,
    utilisation: float = UTILISATION,
    delay_ms: float = 0.0,
    most_rows: int = 0,
) -> Sizing:
    """Return the fewest slots that carry a load within a latency.

    Args:
        curve: Measured on the kind of device that the pool has.
        rps: Requests of one row a second.
        p99_ms: 99 of 100 requests shall take at most this, from the router's last byte in to its first byte out.
        utilisation: Cap of a slot's utilisation, above 0 and below 1.
        delay_ms: How long the endpoint lets a request wait for others to share its batch.
        most_rows: Largest batch that the endpoint allows; 0 = no limit.
    """
    allowed = [point for point in curve.points if not most_rows or point.batch <= most_rows]
    plans = tuple(_plan(curve, point, rps, p99_ms, utilisation, delay_ms) for point in allowed)
    able = [plan for plan in plans if plan.slots]
    best = min(able, key=lambda plan: (plan.slots, plan.p99_ms)) if able else None
    return Sizing(best, plans, tuple(_assumptions(curve, utilisation, delay_ms)))


def _plan(curve: Curve, point: Point, rps: float, p99_ms: float, cap: float, delay_ms: float) -> Plan:
    full_rps = point.batch / point.mean_us * 1e6
    least = max(1, math.ceil(rps / (cap * full_rps)))

    def latency_ms(slots: int) -> float:
        return bound_ms(curve, point, rps / (slots * full_rps), delay_ms)

    floor_ms = latency_ms(MOST_SLOTS)
    if floor_ms > p99_ms or least > MOST_SLOTS:
        return Plan(point.batch, 0, cap * full_rps, 0.0, floor_ms)
    low, high = least, MOST_SLOTS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if latency_ms(middle) <= p99_ms else (middle + 1, high)
    return Plan(point.batch, low, cap * full_rps, rps / (low * full_rps), latency_ms(low))


def bound_ms(curve: Curve, point: Point, utilisation: float, delay_ms: float = 0.0) -> float:
    """Return the bound of the 99th percentile of the latency at a utilisation; see the module."""
    behind = _LN_100 / (point.batch * decay(utilisation)) if utilisation > 0 else 0.0
    return (curve.overhead_us + point.p99_us * (2 + behind)) / 1000 + delay_ms


def decay(utilisation: float) -> float:
    """Return ln z, z > 1 the root of utilisation * (z - 1) = ln z: how fast long queues become rare; 0 from full load on."""
    if utilisation >= 1:
        return 1e-12
    low, high = 0.0, 1.0
    while utilisation * math.expm1(high) < high < 600:
        high *= 2
    low = high / 2 if high > 1 else 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if utilisation * math.expm1(middle) < middle else (low, middle)
    return max(low, 1e-12)


def _assumptions(curve: Curve, utilisation: float, delay_ms: float) -> Iterator[str]:
    batches = sum(point.batches for point in curve.points)
    yield f"device times are those measured on {curve.device}: {batches} batches of {len(curve.points)} sizes, one at a time"
    if curve.rehearsal:
        yield "a CPU stood in for the device: this sizes rehearsal pools only, whose slots share the host's cores"
    else:
        yield "every slot is a whole device of that kind; slots that share one get a part of it"
    yield "requests have one row each, arrive at random, and are shared evenly"
    yield f"a slot is busy at most {utilisation:.0%} of its time"
    yield f"{curve.overhead_us / 1000:.2f} ms beside the device (router, link, stages), as measured at low load"
    if delay_ms:
        yield f"{delay_ms:g} ms of max_queue_delay_ms"
    yield "p99 = overhead + p99(batch) x (2 + ln 100 / (batch x ln z)), z the root of u (z - 1) = ln z: a bound for the queue of batches"
    yield "the network between client and router is not in it"
