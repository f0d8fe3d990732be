"""Brings each pool to the number of slots that `scaling` wants, through Ray Serve's external scaler.

It runs in the supervisor, of which a site has one; so one acts. What it wants is asked again until it is there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.cluster.parts import Applications, RayChild
from orchestrator.cluster.pool import ScaleRule
from orchestrator.cluster.ray_rest import RayRest
from orchestrator.cluster.scaling import ScaleState, decide, first_state, loads
from orchestrator.cluster.serve_config import DEPLOYMENT, admin_socket
from orchestrator.cluster.site import LocalSite
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.processes import ProcessIdentity
from orchestrator.serving.admin import RouterAdmin

_log: Final = logging.getLogger("orchestrator.cluster.autoscaler")
_PERIOD_S: Final = 0.5
_AGAIN_S: Final = 15.0
"""After so long without the agents that were asked for, Serve is asked again."""


class Autoscaler:
    """The loop, in a thread of its own: Serve's answers take up to seconds."""

    def __init__(self, site: LocalSite, ray: RayChild, applications: Applications) -> None:
        self._site, self._ray, self._applications = site, ray, applications
        self._rules = {name: pool.scale for name, pool in site.pools.items() if pool.scale is not None}
        self._states: dict[str, ScaleState] = {}
        self._asked: dict[str, tuple[int, float]] = {}
        self._pools: tuple[int, Mapping[str, str]] = (-1, {})
        self._head: ProcessIdentity | None = None

    def start(self) -> None:
        """Begin, where some pool scales; the thread ends with the process."""
        if self._rules:
            threading.Thread(target=self._run, name="autoscaler", daemon=True).start()

    def _run(self) -> None:
        with RouterAdmin(Path(admin_socket(self._site)), timeout_s=2.0) as admin:
            while True:
                time.sleep(_PERIOD_S)
                head = self._ray.identity
                if head is None or self._applications.state != "up":
                    continue
                if head != self._head:  # a new Serve holds as few slots as the document says
                    self._head, self._asked = head, {}
                    self._states = {name: first_state(rule) for name, rule in self._rules.items()}
                try:
                    self._look(admin)
                except OrchestratorError as error:
                    _log.warning("%s", error)

    def _look(self, admin: RouterAdmin) -> None:
        status, now = admin.status(), time.monotonic()
        if status["version"] != self._pools[0]:
            table = admin.table()
            self._pools = (table.version, {name: endpoint.pool for name, endpoint in table.endpoints.items()})
        found = loads(status, self._pools[1])
        agents = cast("Sequence[Mapping[str, Any]]", status["agents"])
        for name, rule in self._rules.items():
            self._step(name, rule, found.get(name, 0), sum(row["pool"] == name for row in agents), now)

    def _step(self, name: str, rule: ScaleRule, load: int, agents: int, now: float) -> None:
        before = self._states[name]
        state = self._states[name] = decide(rule, before, load, now)
        asked, at = self._asked.get(name, (rule.min_slots, now))
        if state.target == asked and (agents == asked or now - at < _AGAIN_S):
            self._asked[name] = (asked, now if agents == asked else at)
            return
        _log.info("pool %s: %d slots for %d requests (%d agents are there)", name, state.target, load, agents)
        with RayRest(self._ray.dashboard_url, self._site.token_path) as rest:
            rest.scale_deployment(name, DEPLOYMENT, state.target)
        self._asked[name] = (state.target, now)
