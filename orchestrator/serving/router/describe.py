"""What the router says of itself and its models, as plain objects: the same for REST and gRPC, per model and per version."""

from __future__ import annotations

from typing import Final

from orchestrator import __version__
from orchestrator.serving.dispatch.lanes import Lane
from orchestrator.serving.protocol.tensors import TensorSpec
from orchestrator.serving.router.chain import signature_of
from orchestrator.serving.router.routes import EndpointRoute, Place, Routes

EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "statistics", "parameters", "schedule_policy")


def server(compat: str) -> dict[str, object]:
    """Return the OIP server metadata."""
    return {
        "name": "triton" if compat == "triton" else "orchestrate",
        "version": __version__,
        "extensions": list(EXTENSIONS),
    }


def metadata(place: Place) -> dict[str, object]:
    """Return the OIP model metadata of the asked generation, else of the one that stands for the endpoint.

    Raises:
        RequestError: 404 for an unknown generation, 503 while no replica has said what the model takes.
    """
    route, generation = place
    lane = route.main(generation)
    signature = signature_of(lane)
    return {
        "name": route.name,
        "versions": [str(number) for number in (sorted(route.lanes) if generation is None else (generation,))],
        "platform": lane.generation.runtime,
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def config(place: Place) -> dict[str, object]:
    """Return Triton's model configuration, as far as it has a meaning here.

    Raises:
        RequestError: As `metadata`.
    """
    route, generation = place
    lane = route.main(generation)
    signature = signature_of(lane)
    batches = signature.max_batch > 1
    found: dict[str, object] = {
        "name": route.name,
        "platform": lane.generation.runtime,
        "backend": lane.generation.runtime,
        "version_policy": {"specific": {"versions": sorted(route.lanes)}},
        "max_batch_size": signature.max_batch if batches else 0,
        "input": [_config_tensor(spec, batches) for spec in signature.inputs],
        "output": [_config_tensor(spec, batches) for spec in signature.outputs],
    }
    if batches:
        found["dynamic_batching"] = {"preferred_batch_size": [], "max_queue_delay_microseconds": 0}
    return found


def _config_tensor(spec: TensorSpec, batches: bool) -> dict[str, object]:
    datatype = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    return {"name": spec.name, "data_type": datatype, "dims": spec.shape[1:] if batches else spec.shape}


def statistics(routes: Routes, place: Place | None) -> dict[str, object]:
    """Return Triton's statistics: of one generation, of an endpoint, or of all."""
    if place is None:
        lanes = [lane for route in routes.endpoints.values() for lane in _lanes(route)]
    else:
        route, generation = place
        lanes = _lanes(route) if generation is None else [route.lanes[generation]]
    return {"model_stats": [lane.statistics.to_json(lane.endpoint, lane.version) for lane in lanes]}


def index(routes: Routes, *, ready: bool) -> list[dict[str, str]]:
    """Return Triton's repository index; with `ready` only what can answer now."""
    rows: list[dict[str, str]] = []
    for route in routes.endpoints.values():
        for lane in _lanes(route):
            if lane.ready:
                rows.append({"name": route.name, "version": lane.version, "state": "READY", "reason": ""})
            elif not ready:
                reason = "not loaded: the next request loads it" if lane.cold else "no replica is ready"
                rows.append({"name": route.name, "version": lane.version, "state": "UNAVAILABLE", "reason": reason})
    return rows


def _lanes(route: EndpointRoute) -> list[Lane]:
    return [route.lanes[number] for number in sorted(route.lanes)]
