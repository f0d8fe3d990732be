"""`capacity`: measure what a batch costs on the pool's devices, and size a pool from that. Nothing is guessed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from orchestrator.app.serve_site import connect
from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import GateError, ServingError, UsageError
from orchestrator.environment.pool import Pool
from orchestrator.rollout.curves import Curve, Watch, curves_of, find_curve, measured_devices, merged, save_curve
from orchestrator.rollout.sizing import Sizing, size
from orchestrator.serving.runtimes.api import REHEARSAL
from orchestrator.serving.serve_settings import read_serve_settings

if TYPE_CHECKING:
    from orchestrator.ledger import Generation
    from orchestrator.rollout.site import RouterSite

Array = np.ndarray[Any, Any]

_LARGEST: Final = 1024
_WARM: Final = 3
_LEAST_BATCHES, _MOST_BATCHES = 50, 400
_LEAST_S, _MOST_S = 0.3, 3.0


@dataclass(frozen=True, slots=True)
class Ask:
    """What the pool shall carry.

    Attributes:
        rps: Requests of one row a second.
        p99_ms: 99 of 100 requests at most.
        pool: Which pool; empty for the endpoint's own.
        utilisation: Cap, above 0 and below 1.
    """

    endpoint: str
    rps: float
    p99_ms: float
    pool: str = ""
    utilisation: float = 0.7


def measure(workplace: Workplace, endpoint: str, tell: Callable[[str], None]) -> list[Curve]:
    """Send golden samples in batches of each size past the weights, through the admin socket, and keep the curves.

    Users go on; what they send while this runs makes device times longer, never shorter.

    Raises:
        UsageError: Nothing is live under that name.
        ServingError: No batch came back.
        Unreachable: The site is down.
    """
    live = _live(workplace, endpoint)
    site = connect(workplace, live.site)
    found = measure_generation(site, live, tell)
    kept = [merged(find_curve(workplace.state, c.bundle, c.variant, c.device), c) for c in found]
    for curve in kept:
        save_curve(workplace.state, curve)
    return kept


def measure_generation(site: RouterSite, generation: Generation, tell: Callable[[str], None]) -> list[Curve]:
    """Measure one generation of a site; nothing is kept.

    Raises:
        ServingError: No batch came back alone in its batch.
    """
    from orchestrator.rollout.smoke import golden_requests

    requests = golden_requests(generation)
    watch = Watch(site.admin, generation)
    events: dict[int, list[Mapping[str, Any]]] = {}
    for rows in _sizes(site, generation):
        batch = _batch(requests, rows)
        try:
            _send(site, generation, batch)
        except ServingError as error:
            tell(f"batch {rows}: {error.message}")  # sizes that the model does not take are left out
            continue
        found = watch.read(rows)
        if found:
            events[rows] = found
            tell(f"batch {rows}: {len(found)} batches, {np.mean([e['compute_us'] for e in found]) / 1000:.3f} ms each")
    if not events:
        raise ServingError(
            f"no batch of generation {generation.number} of {generation.endpoint!r} ran alone, so nothing was measured",
            hint="measure while few requests come, or look at `orchestrate site status`",
        )
    return curves_of(events, generation, time.time())


def _send(site: RouterSite, generation: Generation, batch: Mapping[str, Array]) -> None:
    def once() -> None:
        site.infer(generation.endpoint, generation.number, batch)

    for _ in range(_WARM):
        once()
    began, sent = time.monotonic(), 0
    while (spent := time.monotonic() - began) < _MOST_S and sent < _MOST_BATCHES:
        if sent >= _LEAST_BATCHES and spent >= _LEAST_S:
            return
        once()
        sent += 1


def _batch(requests: Sequence[Mapping[str, Array]], rows: int) -> Mapping[str, Array]:
    """Return golden samples, over and over, as one request; a single one as it is, since a model may have no axis for rows."""
    if rows == 1:
        return requests[0]
    joined = {name: np.concatenate([each[name] for each in requests]) for name in requests[0]}
    return {name: np.take(array, np.arange(rows) % len(array), axis=0) for name, array in joined.items()}


def _sizes(site: RouterSite, generation: Generation) -> list[int]:
    """Return 1, 2, 4 ... and the most rows that the replicas take and the endpoint allows."""
    wanted = (generation.endpoint, generation.bundle)
    limits = [
        int(row["max_batch"])
        for row in site.status()["replicas"]
        if (row["endpoint"], row["bundle"]) == wanted and row["stage"] == "model"
    ]
    allowed = read_serve_settings(Path(generation.path)).max_batch or _LARGEST
    most = min([_LARGEST, allowed, *limits])
    return sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power <= most)})


def size_pool(workplace: Workplace, ask: Ask) -> dict[str, Any]:
    """Return how many slots carry the load, JSON-ready; says what is assumed.

    Raises:
        UsageError: Nothing is live, no such pool, or no curve was measured for its devices; says how to get one.
        GateError: No number of slots holds the latency; says what each batch size takes.
    """
    live = _live(workplace, ask.endpoint)
    name = ask.pool or live.pool
    pool = workplace.environment.pools.get(name)
    if pool is None:
        have = ", ".join(workplace.environment.pools) or "none"
        raise UsageError(f"the environment has no pool {name!r}", hint=f"pools: {have}")
    curves = [_curve(workplace, live, name, pool, soc) for soc in (pool.socs if not pool.rehearsal else pool.socs[:1])]
    settings = read_serve_settings(Path(live.path))
    sized = [
        size(
            curve,
            ask.rps,
            ask.p99_ms,
            utilisation=ask.utilisation,
            delay_ms=settings.max_queue_delay_ms,
            most_rows=settings.max_batch or 0,
        )
        for curve in curves
    ]
    slowest = max(range(len(sized)), key=lambda at: _slots(sized[at]))
    return _answer(ask, name, pool, curves[slowest], sized[slowest])


def _slots(sizing: Sizing) -> float:
    return float("inf") if sizing.best is None else sizing.best.slots


def _answer(ask: Ask, name: str, pool: Pool, curve: Curve, sizing: Sizing) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "endpoint": ask.endpoint,
        "pool": name,
        "device": curve.device,
        "rehearsal": curve.rehearsal,
        "rps": ask.rps,
        "p99_ms": ask.p99_ms,
        "pool_slots": pool.all_slots,
        "plans": [plan.to_json() for plan in sizing.plans],
        "assumptions": list(sizing.assumptions),
        "measured_at": curve.measured_at,
    }
    if len(pool.socs) > 1 and not pool.rehearsal:
        facts["assumptions"].append(
            f"pool {name!r} has several SoCs; every slot is taken for the slowest, {curve.device}"
        )
    if sizing.best is None:
        quickest = min(sizing.plans, key=lambda plan: plan.p99_ms)
        raise GateError(
            f"no number of slots of {curve.device} holds a p99 of {ask.p99_ms:g} ms: a batch of {quickest.batch} "
            f"alone takes up to {quickest.p99_ms:.2f} ms",
            hint="allow more time, take a smaller model or a faster device, or lower max_queue_delay_ms",
            details=facts,
        )
    return facts | {"slots": sizing.best.slots, "batch": sizing.best.batch, "best": sizing.best.to_json()}


def _curve(workplace: Workplace, live: Generation, name: str, pool: Pool, soc: str) -> Curve:
    device = REHEARSAL if pool.rehearsal else soc
    build = next((each for each in live.builds if each["soc"] == soc), None)
    variant = str(build["variant"]) if build is not None else live.variant
    found = find_curve(workplace.state, live.bundle, variant, device)
    if found is not None:
        return found
    have = measured_devices(workplace.state, live.bundle)
    measured = f"; it was measured on {', '.join(have)} only, which says nothing about {device}" if have else ""
    where = "" if name == live.pool else f" of an environment that serves it from pool {name!r}"
    raise UsageError(
        f"no curve of {live.endpoint!r} (generation {live.number}) was measured on {device}{measured}",
        hint=f"`orchestrate capacity --endpoint {live.endpoint} --measure`{where}; nothing is sized by guess",
    )


def _live(workplace: Workplace, endpoint: str) -> Generation:
    with workplace.look_into_ledger() as ledger:
        live = ledger.generations.live(endpoint)
        known = ", ".join(ledger.generations.endpoints()) or "none"
    if live is None:
        raise UsageError(f"no generation of endpoint {endpoint!r} is live", hint=f"endpoints: {known}")
    return live
