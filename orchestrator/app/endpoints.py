"""`endpoint list` and `endpoint infer`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from orchestrator.app.serve_site import connect
from orchestrator.app.wiring import Workplace
from orchestrator.bundle.golden import GOLDEN_FILE, read_golden
from orchestrator.bundle.serve_golden import SERVE_GOLDEN, read_serve_golden
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


def infer_once(
    workplace: Workplace, endpoint: str, input_file: Path | None, texts: Sequence[str] = ()
) -> dict[str, Any]:
    """Send one request and return the answer.

    Args:
        workplace: Where the endpoint lives.
        endpoint: Its name.
        input_file: An `.npz` keyed by input name, each with the batch as first axis; None = a golden sample.
        texts: Rows of the endpoint's one text input, instead of a file.

    Raises:
        UsageError: Nothing is live under that name, the file is no `.npz`, or the endpoint takes no text.
    """
    with workplace.look_into_ledger() as ledger:
        live = ledger.generations.live(endpoint)
        if live is None:
            known = ", ".join(ledger.generations.endpoints()) or "none"
            raise UsageError(f"no generation of endpoint {endpoint!r} is live", hint=f"endpoints: {known}")
    site = connect(workplace, live.site)
    if texts:
        inputs = _text_input(site.client.metadata(endpoint), texts)
    else:
        inputs = _read_inputs(input_file) if input_file else _golden(Path(live.path))
    began = time.perf_counter()
    answer = site.client.infer(endpoint, inputs)
    return {
        "endpoint": endpoint,
        "generation": answer.generation,
        "bundle": answer.bundle,
        "device": answer.device,
        "latency_ms": (time.perf_counter() - began) * 1000,
        "outputs": {name: _shown(value) for name, value in answer.outputs.items()},
    }


def _read_inputs(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint="give an .npz file keyed by input name") from error


def _text_input(metadata: Mapping[str, Any], texts: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    inputs = metadata["inputs"]
    if len(inputs) != 1 or inputs[0]["datatype"] != "BYTES" or len(inputs[0]["shape"]) != 1:
        takes = ", ".join(f"{row['name']} {row['datatype']}{row['shape']}" for row in inputs)
        raise UsageError(f"the endpoint takes {takes}, not one list of texts", hint="give an .npz file with --input")
    return {inputs[0]["name"]: np.array(texts, dtype=object)}


def _shown(value: np.ndarray[Any, Any]) -> Any:
    if value.dtype.kind != "O":
        return value.tolist()
    texts = cast("np.ndarray[Any, Any]", np.empty(value.size, dtype=object))
    texts[:] = [item.decode("utf-8", "backslashreplace") for item in value.ravel().tolist()]
    return texts.reshape(value.shape).tolist()


def _golden(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the bundle's first sample of what clients send."""
    stages = folder / SERVE_GOLDEN
    inputs = read_serve_golden(stages).asked if stages.exists() else read_golden(folder / GOLDEN_FILE).inputs
    return {name: value[:1] for name, value in inputs.items()}
