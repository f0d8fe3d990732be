"""What the routers of the sites say, looked at no more often than needed, and what happened between two looks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from orchestrator.app.serve_site import connect
from orchestrator.app.top import Look, look, quantile
from orchestrator.app.wiring import Workplace
from orchestrator.console.view import TrafficView
from orchestrator.core.errors import OrchestratorError, Unreachable
from orchestrator.rollout.site import RouterSite

_FRESH_S: Final = 1.0
_WINDOW_S: Final = 60.0
_DURATION: Final = "orchestrate_request_duration_seconds"
_COMPUTE: Final = "orchestrate_batch_compute_seconds"
_REQUESTS: Final = "orchestrate_requests_total"
_NOTHING: Final[Mapping[str, Any]] = {"generations": [], "replicas": [], "agents": []}


@dataclass(slots=True)
class _Site:
    """One site and the looks at it of the last minute."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    found: RouterSite | None = None
    asked_at: float = float("-inf")
    looks: deque[Look] = field(default_factory=deque[Look])
    error: str = ""


@dataclass(frozen=True, slots=True)
class SiteView:
    """A site now. `error` says why nothing is known; `status` is then empty."""

    url: str
    status: Mapping[str, Any]
    looks: tuple[Look, ...]
    error: str

    def row(self, endpoint: str, generation: int) -> Mapping[str, Any] | None:
        """Return the router's row of a generation, if it has it."""
        rows: list[Mapping[str, Any]] = self.status["generations"]
        return next((r for r in rows if r["endpoint"] == endpoint and r["generation"] == generation), None)

    def traffic(self, endpoint: str, generation: int) -> TrafficView | None:
        """Return what a generation did between the oldest look that is kept and the newest; None with one look."""
        if len(self.looks) < 2:
            return None
        before, after = self.looks[0], self.looks[-1]
        took_s = max(1e-3, after.at - before.at)
        labels = {"endpoint": endpoint, "generation": str(generation), "stage": "model"}
        ended = _gained(_REQUESTS, before, after, labels)
        whole, compute = (_edges(name, before, after, labels) for name in (_DURATION, _COMPUTE))
        return TrafficView(
            window_s=took_s,
            requests_per_s=ended / took_s,
            errors_per_s=max(0.0, _faults(after, labels) - _faults(before, labels)) / took_s,
            p50_ms=quantile(whole, 0.5),
            p99_ms=quantile(whole, 0.99),
            compute_p50_ms=quantile(compute, 0.5),
        )


class Sites:
    """The sites of an environment.

    Args:
        workplace: Whose.
        clock: Seconds, never backwards.
    """

    def __init__(self, workplace: Workplace, clock: Callable[[], float] = time.monotonic) -> None:
        self._workplace = workplace
        self._clock = clock
        self._sites = {name: _Site() for name in workplace.environment.sites}

    def view(self, name: str) -> SiteView:
        """Look at a site; an answer of a moment ago is good enough. Never raises: a site that is down says so."""
        site = self._sites.get(name)
        if site is None:
            return SiteView("", _NOTHING, (), f"The environment of this console has no site {name!r}.")
        with site.lock:
            if self._clock() - site.asked_at >= _FRESH_S:
                self._ask(name, site)
                site.asked_at = self._clock()
            if site.error or not site.looks or site.found is None:
                return SiteView("", _NOTHING, (), site.error)
            return SiteView(site.found.url, site.looks[-1].status, tuple(site.looks), "")

    def evidence(self, name: str, endpoint: str) -> Mapping[str, Any]:
        """Return what the site's routers count of a comparison; empty where they do not answer."""
        site = self._sites.get(name)
        found = site.found if site is not None else None
        if found is None:
            return {}
        try:
            return found.admin.evidence(endpoint)
        except OrchestratorError:
            return {}

    def _ask(self, name: str, site: _Site) -> None:
        try:
            try:
                found = site.found or connect(self._workplace, name)
                seen = look(found.admin)
            except Unreachable:
                if site.found is None:
                    raise
                found = connect(self._workplace, name)  # the site may have gone down and come up elsewhere
                seen = look(found.admin)
        except OrchestratorError as error:
            site.found, site.error = None, f"Site {name} does not answer, so its traffic is not shown: {error.message}"
            site.looks.clear()
            return
        site.found = found
        site.looks.append(seen)
        site.error = ""
        if site.looks[0].status.get("boot") != site.looks[-1].status.get("boot"):
            newest = site.looks[-1]
            site.looks.clear()  # another router counts from zero
            site.looks.append(newest)
        while len(site.looks) > 2 and site.looks[-1].at - site.looks[1].at >= _WINDOW_S:
            site.looks.popleft()


def _gained(name: str, before: Look, after: Look, labels: Mapping[str, str]) -> float:
    return max(0.0, after.sum(name, **labels) - before.sum(name, **labels))


def _faults(seen: Look, labels: Mapping[str, str]) -> float:
    """Return how many requests ended with a server's fault; what a client did wrong is not one."""
    rows = seen.series.get(_REQUESTS, ())
    return sum(n for have, n in rows if labels.items() <= have.items() and have.get("status", "").startswith("5"))


def _edges(name: str, before: Look, after: Look, labels: Mapping[str, str]) -> list[tuple[float, float]]:
    """Return the cumulative counts of the interval by upper edge, seconds."""
    counts: dict[float, float] = {}
    for sign, seen in ((1, after), (-1, before)):
        for have, value in seen.series.get(f"{name}_bucket", ()):
            if labels.items() <= have.items():
                edge = float(have["le"])
                counts[edge] = counts.get(edge, 0.0) + sign * value
    return sorted(counts.items())
