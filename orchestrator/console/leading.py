"""A rollout that nobody leads is led on from here after a button, so that what was asked happens."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from typing import Final

from orchestrator.app.rollout_lead import carry_on, leader
from orchestrator.app.rollout_projection import start
from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import OrchestratorError
from orchestrator.ledger import Ledger

_log: Final = logging.getLogger(__name__)


class Leading:
    """Leads rollouts until they end or wait for people; each endpoint's one after another.

    A killed console leaves nothing half done: the ledger says where the next one goes on.

    Args:
        workplace: Of the environment.
        ledger: Its ledger.
    """

    def __init__(self, workplace: Workplace, ledger: Ledger) -> None:
        self._workplace, self._ledger = workplace, ledger
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def lead_on(self, endpoint: str, generation: int) -> None:
        """See to it that somebody leads, and that MLflow hears of it; returns at once."""
        start(self._workplace)
        if leader(self._ledger, endpoint) is None:
            arguments = (endpoint, generation)
            threading.Thread(target=self._lead, args=arguments, daemon=True, name=f"lead {endpoint}").start()

    def _lead(self, endpoint: str, generation: int) -> None:
        with self._locks[endpoint]:
            try:
                carry_on(self._workplace, endpoint, generation, lambda line: _log.info("%s: %s", endpoint, line))
            except OrchestratorError as error:  # that it waits, or was taken back, stands in the ledger
                _log.info("%s: %s", endpoint, error)
