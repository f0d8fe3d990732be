"""What is already done, looked up where it is kept: store, work folders, ledger, router."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.manifest import MANIFEST_NAME
from orchestrator.ledger import Generation, Ledger
from orchestrator.plan.planner import Deployed
from orchestrator.steps.results import stored_result
from orchestrator.steps.segment import work_folder

_EPOCH: Final = re.compile(r"epoch-(\d+)")


class KnownState:
    """`plan.planner.Known` over one workplace."""

    def __init__(self, workplace: Workplace, ledger: Ledger, recipe: str) -> None:
        self._workplace = workplace
        self._store = workplace.store
        self._ledger = ledger
        self._recipe = recipe

    def result(self, fingerprint: str) -> Mapping[str, Any] | None:
        """Return a stored result whose artifacts are whole."""
        return stored_result(self._store, fingerprint)

    def resumable(self, fingerprint: str) -> str | None:
        """Say which complete checkpoint an unfinished attempt left."""
        folder = work_folder(self._workplace.work, fingerprint) / "checkpoints"
        epochs = [epoch for path in _folders(folder) if (epoch := _epoch(path)) is not None]
        return f"goes on from the checkpoint of epoch {max(epochs)}" if epochs else None

    def previous_parts(self, step: str) -> Mapping[str, Any] | None:
        """Return the parts of the step's last fingerprint in this recipe."""
        row = self._ledger.executions.previous_step(self._recipe, step)
        return row.parts if row is not None else None

    def deployed(self, endpoint: str, pool: str) -> Deployed | None:
        """Return what the endpoint serves, asking the router whether it answers."""
        live = self._ledger.generations.live(endpoint)
        if live is None or live.pool != pool:
            return None
        url, socket = self._router(live.site)
        facts = {
            "endpoint": endpoint,
            "generation": live.number,
            "bundle": live.bundle,
            "variant": live.variant,
            "runtime": live.runtime,
            "target": _target(live),
            "pool": live.pool,
            "device": live.device,
            "url": f"{url}/v2/models/{endpoint}",
        }
        return Deployed(
            live.artifact,
            live.number,
            bool(url) and _answers(url, socket, endpoint, live.number),
            facts,
            live.variant_artifact,
            {f"variant-{build['soc']}": str(build["variant_artifact"]) for build in live.builds[1:]},
        )

    def _router(self, site: str) -> tuple[str, str]:
        """Return the router's URL and its admin socket; empty where it is not known."""
        from orchestrator.cluster.local import status

        try:
            found = status(self._workplace.site(site))
        except OrchestratorError:
            return "", ""
        return found.router_url, found.router_admin


def _target(live: Generation) -> str:
    """Return the recipe's target that the generation's variant was made for; empty without a variant."""
    from orchestrator.bundle.variant import read_variant

    try:
        return read_variant(Path(live.variant_path), content=False).target if live.variant_path else ""
    except OrchestratorError:
        return ""


def _answers(url: str, socket: str, endpoint: str, generation: int) -> bool:
    from orchestrator.serving.client import OipClient

    try:
        return OipClient(url, timeout_s=2.0, socket=socket).ready(endpoint, generation)
    except OrchestratorError:
        return False


def _folders(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


def _epoch(path: Path) -> int | None:
    match = _EPOCH.fullmatch(path.name)
    return int(match[1]) if match and (path / MANIFEST_NAME).is_file() else None
