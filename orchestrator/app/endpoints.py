"""`endpoint list` and `endpoint infer`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.app.serve_site import connect
from orchestrator.app.wiring import Workplace
from orchestrator.bundle.golden import read_golden
from orchestrator.core.errors import Unreachable, UsageError
from orchestrator.rollout import endpoints
from orchestrator.rollout.site import RouterSite


def list_endpoints(workplace: Workplace) -> list[dict[str, Any]]:
    """Return every endpoint as `{endpoint, url, generation, bundle, device, pool, state}`."""
    sites: dict[str, RouterSite] = {}
    for name in workplace.environment.sites:
        try:
            sites[name] = connect(workplace, name)
        except Unreachable:
            continue  # its endpoints are listed as `down`
    with workplace.look_into_ledger() as ledger:
        views = endpoints.list_endpoints(ledger, sites)
    columns = ("endpoint", "url", "generation", "bundle", "device", "pool", "state")
    return [{column: getattr(view, column) for column in columns} for view in views]


def infer_once(workplace: Workplace, endpoint: str, input_file: Path | None) -> dict[str, Any]:
    """Send one request and return the answer.

    Args:
        workplace: Where the endpoint lives.
        endpoint: Its name.
        input_file: An `.npz` keyed by input name, each with the batch as first axis; None = a golden sample.

    Raises:
        UsageError: Nothing is live under that name, or the file is no `.npz`.
    """
    with workplace.look_into_ledger() as ledger:
        live = ledger.generations.live(endpoint)
        if live is None:
            known = ", ".join(ledger.generations.endpoints()) or "none"
            raise UsageError(f"no generation of endpoint {endpoint!r} is live", hint=f"endpoints: {known}")
    site = connect(workplace, live.site)
    inputs = _read_inputs(input_file) if input_file else _golden(Path(live.path))
    began = time.perf_counter()
    answer = site.client.infer(endpoint, inputs)
    return {
        "endpoint": endpoint,
        "generation": answer.generation,
        "bundle": answer.bundle,
        "device": answer.device,
        "latency_ms": (time.perf_counter() - began) * 1000,
        "outputs": {name: value.tolist() for name, value in answer.outputs.items()},
    }


def _read_inputs(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint="give an .npz file keyed by input name") from error


def _golden(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    golden = read_golden(folder / "golden.safetensors")
    return {name: value[:1] for name, value in golden.inputs.items()}
