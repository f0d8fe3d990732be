"""How a running segment learns that its site's Ray cluster is up: a small file that the engine writes once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.core.errors import InfraError, OrchestratorError, error_from_json
from orchestrator.core.files import write_json

_WAIT_S: Final = 180.0


def announce_site(path: Path, ray_address: str, ray_token_path: str, environment: Mapping[str, str]) -> None:
    """Say that the cluster is up, and what a process must have in its environment before it imports ray."""
    write_json(path, {"ray_address": ray_address, "ray_token_path": ray_token_path, "environment": dict(environment)})


def announce_failure(path: Path, error: OrchestratorError) -> None:
    """Say that the cluster will not come up."""
    write_json(path, {"error": error.to_json()})


def wait_for_site(path: Path, *, wait_s: float = _WAIT_S) -> tuple[str, str]:
    """Return (GCS address, path of the token file) as soon as they are known; our environment is then ready for ray.

    Raises:
        OrchestratorError: The site did not come up; the engine's own error.
        InfraError: Nothing was said within `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise InfraError(
                f"the site's Ray cluster was not up within {wait_s:.0f} s",
                place=str(path),
                hint="see `orchestrate site status` and the site's logs",
            )
        time.sleep(0.05)
    data = cast("dict[str, Any]", json.loads(path.read_bytes()))
    if "error" in data:
        raise error_from_json(data["error"])
    os.environ.update(data["environment"])
    return str(data["ray_address"]), str(data["ray_token_path"])
