"""Tensors whose range follows from another's: what Relu and Clip leave of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from orchestrator.graph.forecast.instrument import Taken
from orchestrator.graph.forecast.workspace import Workspace

_CLIP_INPUTS: Final = 11
"""From this opset on the bounds of Clip are inputs."""


@dataclass(frozen=True, slots=True)
class Clamp:
    """A tensor whose values are those of another, held between two bounds: extremes and samples follow from the other's."""

    source: str
    low: float
    high: float

    def derive(self, name: str, taken: Taken) -> None:
        """Give `taken` what reading the tensor would have given."""
        for label in ("max", "min"):
            # what is never negative has no minimum of its own: 0 and its maximum bound the clamped values as well
            seen = taken.scalars.get(f"{label} {self.source}")
            if seen is not None:
                taken.scalars[f"{label} {name}"] = np.clip(seen, self.low, self.high)
        taken.samples[name] = np.clip(taken.samples[self.source], self.low, self.high)


def clamped_tensors(space: Workspace, asked: Collection[str], copies: Mapping[str, str]) -> dict[str, Clamp]:
    """Return the tensors that Relu and Clip with constant bounds make of others, in topological order.

    Reading a tensor costs about as much as computing it, and networks clamp after every convolution.
    """
    found: dict[str, Clamp] = {}
    weights = space.weights
    for node in space.graph.node:
        if node.op_type not in ("Clip", "Relu") or node.domain:
            continue
        source, output = str(node.input[0]), str(node.output[0])
        source = copies.get(source, source)
        bounds = _bounds(space, node, weights)
        if output in asked and source in asked and bounds is not None:
            found[output] = Clamp(source, *bounds)
    return found


def _bounds(space: Workspace, node: Any, weights: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the bounds of a Relu or Clip; None where they are computed or not given as inputs."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if space.opset < _CLIP_INPUTS:
        return None
    ends = [-math.inf, math.inf]
    for place, name in enumerate(node.input[1:3]):
        if name and name not in weights:
            return None
        if name:
            ends[place] = float(space.values(weights[name]).item())
    return (ends[0], ends[1]) if ends[0] <= ends[1] else None
