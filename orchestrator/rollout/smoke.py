"""The smoke test: the bundle's golden samples through the router, against the reference outputs that it carries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from orchestrator.bundle.golden import GOLDEN_FILE, Golden, read_golden
from orchestrator.bundle.serve_golden import SERVE_GOLDEN, read_serve_golden
from orchestrator.core.errors import GateError
from orchestrator.graph.parity import OutputMetrics, compare
from orchestrator.graph.verdict import Thresholds, Verdict, judge
from orchestrator.ledger import Generation
from orchestrator.rollout.site import Answer, Site

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class SmokeReport:
    """What the golden samples showed.

    Attributes:
        samples: How many went through; every one of the bundle.
        device: What answered; says `rehearsal` where there is no NPU.
    """

    samples: int
    device: str
    metrics: Mapping[str, OutputMetrics]
    verdict: Verdict

    def to_json(self) -> dict[str, object]:
        """Return the report, JSON-ready."""
        return {
            "samples": self.samples,
            "device": self.device,
            "outputs": {name: output.to_json() for name, output in self.metrics.items()},
            "verdict": self.verdict.to_json(),
        }


def smoke_test(
    site: Site, generation: Generation, thresholds: Thresholds, *, saturating: bool, alive: Callable[[], None]
) -> SmokeReport:
    """Send every golden sample to the versioned URL of a generation, and judge the answers.

    Args:
        site: Whose router is asked.
        generation: Whom to ask, past the weights.
        thresholds: How close the outputs must be to the references.
        saturating: Whether the SoC hides overflow and NaN.
        alive: Called between requests, so that a long test does not look dead.

    Raises:
        GateError: Another generation or device answered, or the numbers are off; details hold the report.
        IntegrityError: The golden samples cannot be read.
        ServingError: The router or the replica refused a sample.
    """
    golden, ranks = _golden(Path(generation.path))
    parts: list[Tensors] = []
    for inputs in _requests(golden, ranks):
        alive()
        answer = site.infer(generation.endpoint, generation.number, inputs)
        _check_origin(answer, generation)
        parts.append(answer.outputs)
    references = {name: array[: golden.count] for name, array in golden.outputs.items()}
    answered = {name for part in parts for name in part} & set(references)
    pairs = {name: _pair(references[name], _joined(name, parts, references[name])) for name in sorted(answered)}
    references |= {name: pair[0] for name, pair in pairs.items()}
    metrics = compare(references, {name: pair[1] for name, pair in pairs.items()})
    verdict = judge(metrics, thresholds, saturating=saturating)
    report = SmokeReport(golden.count, generation.device, metrics, verdict)
    if not verdict.passed:
        reasons = "; ".join(f"{r.output}: {r.text}" if r.output else r.text for r in verdict.reasons)
        raise GateError(
            f"the smoke test of generation {generation.number} of {generation.endpoint!r} failed: {reasons}",
            hint="the old generation stays live; compare the bundle with `parity`, or loosen the target's parity",
            details={"smoke": report.to_json()},
        )
    return report


def golden_requests(generation: Generation) -> list[Tensors]:
    """Return the golden samples of a generation's bundle, one request each.

    Raises:
        IntegrityError: They cannot be read.
    """
    return _requests(*_golden(Path(generation.path)))


def _requests(golden: Golden, ranks: Mapping[str, int]) -> list[Tensors]:
    return [
        {name: _sample(array, sample, ranks.get(name)) for name, array in golden.inputs.items()}
        for sample in range(golden.count)
    ]


def _check_origin(answer: Answer, generation: Generation) -> None:
    asked = (generation.number, generation.bundle, generation.device)
    found = (answer.generation, answer.bundle, answer.device)
    if found != asked and found not in [(*asked[:2], str(build["device"])) for build in generation.builds]:
        raise GateError(
            f"generation {asked[0]} ({asked[1]} on {asked[2]}) was asked, "
            f"generation {found[0]} ({found[1]} on {found[2]}) answered",
            hint="the pool's device or the router's table is not what the environment says; look at `site status`",
        )


def _golden(folder: Path) -> tuple[Golden, Mapping[str, int]]:
    """Return what clients send and what they must get, and the ranks of the inputs where they are the model's own."""
    if not (folder / SERVE_GOLDEN).exists():
        return read_golden(folder / GOLDEN_FILE), _ranks(folder)
    found = read_serve_golden(folder / SERVE_GOLDEN)
    return Golden(found.asked, found.answers), {}


def _pair(reference: Array, found: Array) -> tuple[Array, Array]:
    """Text is compared by which of it is equal; other arrays as they are."""
    if reference.dtype.kind != "O" or found.shape != reference.shape:
        return reference, found
    return np.ones(reference.shape, np.bool_), np.equal(reference, found).astype(np.bool_)


def _ranks(folder: Path) -> Mapping[str, int]:
    """Return the number of dimensions of each model input, as the bundle's card names them."""
    path = folder / "bundle.json"
    if not path.exists():
        return {}
    card = cast("Mapping[str, Any]", json.loads(path.read_bytes()))
    return {str(spec["name"]): len(spec["shape"]) for spec in card.get("inputs") or ()}


def _sample(array: Array, sample: int, rank: int | None) -> Array:
    """Return one sample: with a leading 1, unless the model has no axis for it."""
    return array[sample] if rank == array.ndim - 1 else array[sample : sample + 1]


def _joined(name: str, parts: list[Tensors], reference: Array) -> Array:
    """Put the samples of one output together as the reference has them: axis 0 counts samples.

    Answers that differ among themselves, or lack the output, give an array of another shape, which fails the test.
    """
    found = [part[name] for part in parts if name in part]
    rows = [array[np.newaxis] if array.shape == reference.shape[1:] else array for array in found]
    if len(rows) == len(parts) and len({(row.shape, row.dtype) for row in rows}) == 1 and rows[0].ndim:
        return np.concatenate(rows)
    return np.empty((0,), reference.dtype)
