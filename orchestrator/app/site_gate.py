"""Brings the local site up in the background while the engine already works on steps that do not need it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import InfraError, OrchestratorError
from orchestrator.steps.site_file import announce_failure, announce_site


class BackgroundSite:
    """The engine's `SiteGate` over the local site."""

    def __init__(self, workplace: Workplace, site: str, site_file: Path) -> None:
        """Prepare; nothing starts, and nothing heavy is imported, before `start`.

        Args:
            workplace: Whose site.
            site: Its name.
            site_file: Where the worker looks for the Ray address.
        """
        self._workplace = workplace
        self._site = site
        self._site_file = site_file
        self._thread: threading.Thread | None = None
        self._error: OrchestratorError | None = None
        site_file.unlink(missing_ok=True)

    @property
    def site_file(self) -> Path:
        """The file that appears when Ray answers."""
        return self._site_file

    def start(self, *, ray: bool, pool: bool) -> None:
        """Begin; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._bring_up, args=(ray, pool), name="site", daemon=True)
            self._thread.start()

    def wait_ready(self, tick: Callable[[], None]) -> None:
        """Return when all parts are up.

        Raises:
            OrchestratorError: They will not come up.
        """
        if self._thread is None:
            raise InfraError("the site was never started")
        while self._thread.is_alive():
            tick()
            time.sleep(0.02)
        if self._error is not None:
            self._thread = None
            raise self._error

    def _bring_up(self, ray: bool, pool: bool) -> None:
        from orchestrator.app.serve_site import restore
        from orchestrator.cluster.local import driver_environment, up

        try:
            settings = self._workplace.site(self._site)
            if ray:
                status = up(settings, wait_for=("ray",))
                token_path = str(status.ray_token_path)
                announce_site(self._site_file, status.ray_address, token_path, driver_environment(status))
            if pool:
                up(settings)
                restore(self._workplace, self._site)
        except OrchestratorError as error:
            self._error = error
            announce_failure(self._site_file, error)
