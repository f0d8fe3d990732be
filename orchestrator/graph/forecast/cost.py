"""What keeping nodes in fp32 costs: work that leaves the fp16 units, casts at the borders, bytes that they move."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from orchestrator.ascend.precision import Policy
from orchestrator.graph.forecast.workspace import Workspace
from orchestrator.graph.twin.edges import MOVEMENT, plan_edges
from orchestrator.graph.twin.wires import Edges

_PER_ELEMENT: Final = {"Softmax": 5, "LayerNormalization": 8, "InstanceNormalization": 8, "Erf": 8, "Tanh": 8, "Exp": 4}
"""Rough work per result of operators that are more than one operation each; others count one."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The price of a keep list, per batch that the shapes were measured on.

    Attributes:
        nodes: Number kept.
        flops_share: Share of the model's operations that run in fp32.
        casts_added, casts_removed: How many more casts, or fewer, the borders need than those of the mode alone.
        bytes_added: Bytes that wider tensors and those casts move beyond what the mode alone does; negative: fewer.
    """

    nodes: int
    flops_share: float
    casts_added: int
    casts_removed: int
    bytes_added: int

    @property
    def casts(self) -> str:
        """The casts in words."""
        return f"{self.casts_removed} removed" if self.casts_removed else f"{self.casts_added} added"

    def to_json(self) -> dict[str, object]:
        """Return all fields."""
        return asdict(self)


class Prices:
    """Knows the cost of any keep list of one graph under one policy."""

    def __init__(self, space: Workspace, policy: Policy) -> None:
        self._space, self._policy = space, policy
        self.flops = {node.name: flops(node, space.shapes) for node in space.graph.node}
        self._total = sum(self.flops.values()) or 1.0
        self._base = _casts(space, plan_edges(space.model, policy))

    def of(self, keep: Collection[str]) -> Cost:
        """Return the cost of keeping `keep`."""
        casts, moved = _casts(self._space, plan_edges(self._space.model, self._policy, keep))
        share = sum(self.flops.get(name, 0.0) for name in keep) / self._total
        more = casts - self._base[0]
        return Cost(len(set(keep)), share, max(0, more), max(0, -more), moved - self._base[1])


def _casts(space: Workspace, edges: Edges) -> tuple[int, int]:
    """Return the casts at borders of format, and the bytes that casts and float tensors move."""
    casts = moved = 0
    for wire in edges.in_scope(""):
        if wire.kind == "weight" or wire.name not in space.shapes:
            continue
        elements = math.prod(space.shapes[wire.name])
        inside = [reader for reader in wire.readers if not reader.is_output]
        moved += elements * ((2 if wire.low else 4) + sum(2 if reader.low else 4 for reader in inside))
        if any(reader.low != wire.low for reader in inside):
            casts += 1
            moved += 6 * elements
    return casts, moved


def flops(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Return the operations of one node; 0 for movement and for nodes whose shapes are not known."""
    out = shapes.get(node.output[0]) if node.output else None
    if out is None:
        return 0.0
    size = float(math.prod(out))
    ints = {attribute.name: attribute.i for attribute in node.attribute}
    inputs = [shapes.get(name, ()) for name in node.input]
    if node.op_type == "MatMul" and inputs[0]:
        return 2 * size * inputs[0][-1]
    if node.op_type == "Gemm" and len(inputs[0]) == 2:
        return 2 * size * inputs[0][0 if ints.get("transA") else 1]
    if node.op_type == "Conv" and len(inputs) > 1 and len(inputs[1]) > 1:
        return 2 * size * math.prod(inputs[1][1:])
    if node.op_type == "ConvTranspose" and len(inputs) > 1 and len(inputs[1]) > 1:
        return 2 * math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if node.op_type in {"LSTM", "GRU", "RNN"} and len(inputs) > 2 and inputs[1] and inputs[2]:
        steps = inputs[0][0] * inputs[0][1]
        return 2.0 * steps * (math.prod(inputs[1]) + math.prod(inputs[2]))
    if node.op_type.startswith("Reduce") or node.op_type == "GlobalAveragePool":
        return float(math.prod(inputs[0])) if inputs and inputs[0] else size
    return 0.0 if node.op_type in MOVEMENT else size * _PER_ELEMENT.get(node.op_type, 1)
