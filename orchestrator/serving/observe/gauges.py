"""What the router is at the moment of a scrape, and the whole exposition."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator import __version__
from orchestrator.serving.agent.device_figures import figure_families
from orchestrator.serving.observe.canary_gauges import canary_families
from orchestrator.serving.observe.exposition import Family, write
from orchestrator.serving.observe.metrics import SECONDS, Histogram, place_labels, slot_of
from orchestrator.serving.observe.model_gauges import model_families
from orchestrator.serving.observe.record import place_of

if TYPE_CHECKING:
    from orchestrator.serving.dispatch.lanes import Lane
    from orchestrator.serving.link.connections import LinkConnection
    from orchestrator.serving.router.process import Router

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_STATM: Final = Path("/proc/self/statm")
_LANE_GAUGES: Final = (
    ("orchestrate_queued_requests", "Requests that wait for a replica."),
    ("orchestrate_in_flight_requests", "Requests that a replica holds."),
    ("orchestrate_ready_replicas", "Replicas that serve the generation."),
    ("orchestrate_generation_weight", "Percent of the endpoint's unversioned requests."),
)


class Pulse:
    """How late the event loop calls what should be called at regular times; the answers of clients are as late."""

    def __init__(self, every_s: float) -> None:
        self.started_at = time.time()
        self._every_s = every_s
        self._due = 0.0
        self._lag = Histogram(SECONDS)
        self._lags: list[float] = []

    def beat(self, now: float) -> None:
        """Call this every `every_s`, by the loop's own timer; `now` is `time.monotonic()`."""
        if self._due:
            self._lags.append(max(0.0, now - self._due))
            if len(self._lags) > 256:
                self._settle()
        self._due = now + self._every_s

    def _settle(self) -> None:
        self._lag.add(self._lags)
        self._lags = []

    def family(self, router: str) -> Family:
        """Return the lags until now."""
        if self._lags:
            self._settle()
        found = Family("orchestrate_router_loop_lag_seconds", "histogram", "How late the router's event loop is.")
        self._lag.to(found, {"router": router})
        return found


async def exposition(router: Router, number: str) -> bytes:
    """Return the Prometheus text of one router process; `number` is its label.

    Between two families the event loop goes on: with hundreds of endpoints the whole takes tens of milliseconds.
    """
    text = bytearray()
    for family in _families(router, number):
        text += write((family,))
        await asyncio.sleep(0)
    return bytes(text)


def _families(router: Router, number: str) -> Iterator[Family]:
    in_table = {(lane.endpoint, lane.generation.generation) for lane in router.dispatcher.lanes}
    yield from router.recorder.metrics.families(number, in_table)
    yield from _lane_families(number, router.dispatcher.lanes)
    yield from _replica_families(number, router)
    # Agents tell every router the same.
    agents = [] if router.settings.router else list(router.links.agents)
    yield from _agent_families(number, agents)
    yield from model_families(number, agents)
    yield from _process_families(number, router)
    yield router.pulse.family(number)
    yield from router.observers.families(number)
    yield from canary_families(number, router.evidence)


def _lane_families(number: str, lanes: list[Lane]) -> list[Family]:
    found = [Family(name, "gauge", about) for name, about in _LANE_GAUGES]
    for lane in lanes:
        labels = place_labels(number, place_of(lane))
        weight = 0 if lane.retired else lane.generation.weight
        for family, value in zip(found, (len(lane.queue), lane.in_flight, len(lane.replicas), weight), strict=True):
            family.add(labels, value)
    return found


def _replica_families(number: str, router: Router) -> list[Family]:
    held = Family("orchestrate_replica_in_flight_requests", "gauge", "Requests that this replica holds.")
    sums: dict[tuple[str, str, str], int] = {}
    for replica in router.dispatcher.replicas():
        key = (replica.endpoint, slot_of(replica.endpoint, replica.name), replica.device)
        sums[key] = sums.get(key, 0) + sum(len(batch.requests) for batch in replica.batches.values())
    for (endpoint, slot, device), count in sums.items():
        held.add({"router": number, "endpoint": endpoint, "replica": slot, "device": device}, count)
    return [held]


def _agent_families(number: str, agents: list[LinkConnection]) -> list[Family]:
    slots = Family("orchestrate_agents", "gauge", "Agents that are connected: slots that are held.")
    restarts = Family("orchestrate_replica_restarts_total", "counter", "Restarts of the replicas of a slot.")
    counts: dict[tuple[str, str], int] = {}
    sums: dict[tuple[str, int, str, str], int] = {}
    for connection in agents:
        hello = connection.agent
        assert hello is not None
        counts[hello.pool, hello.device] = counts.get((hello.pool, hello.device), 0) + 1
        for report in connection.reports:
            key = (hello.pool, hello.slot, hello.device, report.endpoint)
            sums[key] = sums.get(key, 0) + report.restarts
    for (pool, device), count in counts.items():
        slots.add({"router": number, "pool": pool, "device": device}, count)
    for (pool, slot, device, endpoint), count in sums.items():
        labels = {"router": number, "pool": pool, "slot": slot, "device": device, "endpoint": endpoint}
        restarts.add(labels, count)
    return [slots, restarts, *figure_families(number, agents)]


def _process_families(number: str, router: Router) -> Iterator[Family]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    labels = {"router": number}
    gauges = (
        ("orchestrate_router_resident_bytes", "Memory of the router process.", _resident_bytes()),
        ("orchestrate_router_connections", "Open client connections over HTTP.", len(router.public.connections)),
        ("orchestrate_router_held_bytes", "Request bodies that are held.", router.public.buffered_bytes),
        ("orchestrate_router_start_time_seconds", "Unix time of the start.", router.pulse.started_at),
        ("orchestrate_table_version", "Version of the routing table.", router.routes.table.version),
    )
    for name, about, value in gauges:
        family = Family(name, "gauge", about)
        family.add(labels, value)
        yield family
    spent = Family("orchestrate_router_cpu_seconds_total", "counter", "CPU time of the router process.")
    spent.add(labels, usage.ru_utime + usage.ru_stime)
    yield spent
    if router.doors.guard is not None:
        tokens = Family("orchestrate_tokens", "gauge", "Tokens that are valid; 0 where the tokens file was deleted.")
        tokens.add(labels, len(router.doors.guard))
        yield tokens
    errors = Family(
        "orchestrate_http_errors_total", "counter", "HTTP answers that are errors, whether a model was found or not."
    )
    for status, count in sorted(router.public.errors.items()):
        errors.add({**labels, "status": status}, count)
    yield errors
    build = Family("orchestrate_build_info", "gauge", "The version that runs; always 1.")
    build.add({**labels, "version": __version__}, 1)
    yield build


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * _PAGE
