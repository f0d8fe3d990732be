"""Reductions whose sum leaves fp16's range while their result does not: fatal where the kernel accumulates in fp16."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from onnx import helper

from orchestrator.ascend.precision import Policy
from orchestrator.graph.forecast.batches import Batches
from orchestrator.graph.forecast.instrument import PREFIX, Instrument, take
from orchestrator.graph.forecast.ranges import TensorRange
from orchestrator.graph.forecast.workspace import Workspace
from orchestrator.graph.parity import FP16_MAX

_SUMS: Final = frozenset({"ReduceMean", "ReduceSum", "ReduceL1", "ReduceLogSum"})
_SQUARES: Final = frozenset({"ReduceL2", "ReduceSumSquare"})
_SPATIAL: Final = frozenset({"GlobalAveragePool", "InstanceNormalization"})


@dataclass(frozen=True, slots=True)
class InnerOverflow:
    """A reduction whose sum of magnitudes exceeds 65504.

    Attributes:
        largest_sum: Largest sum |x| (of squares, for norms) over the reduced elements of one result.
        terms: Number of elements summed for one result.
        narrow: Whether the policy says that this kernel accumulates in fp16: then it overflows.
    """

    node: str
    op_type: str
    largest_sum: float
    terms: int
    narrow: bool

    def to_json(self) -> dict[str, object]:
        """Return all fields."""
        return asdict(self)


def inner_overflows(
    space: Workspace, batches: Batches, policy: Policy, ranges: Mapping[str, TensorRange]
) -> list[InnerOverflow]:
    """Find reductions that would overflow inside with fp16 accumulation; sums are measured only where they could.

    Raises:
        GateError: The runtime fails.
    """
    asked: dict[str, Any] = {}
    for node in space.graph.node:
        if node.op_type not in _SUMS | _SQUARES | _SPATIAL or node.input[0] not in ranges:
            continue
        reach = ranges[node.input[0]].absmax
        reach = reach * reach if node.op_type in _SQUARES else reach
        if not reach * _terms(space, node) <= FP16_MAX:
            asked[node.name] = node
    if not asked:
        return []
    made = Instrument(space)
    for node in space.graph.node:
        made.nodes.append(node)
        if node.name in asked:
            made.scalar(node.name, made.reduce("ReduceMax", made.flat(_sum(made, space, node))))
    largest = {name: float(np.max(values)) for name, values in take(made, batches).scalars.items()}
    return [
        InnerOverflow(
            name, node.op_type, largest[name], _terms(space, node), policy.accumulates(node.op_type) != "fp32"
        )
        for name, node in asked.items()
        if largest[name] > FP16_MAX
    ]


def _terms(space: Workspace, node: Any) -> int:
    size = math.prod(space.shapes[node.input[0]])
    if node.op_type in _SPATIAL:
        return math.prod(space.shapes[node.input[0]][2:])
    return size // max(1, math.prod(space.shapes.get(node.output[0], (1,))))


def _sum(made: Instrument, space: Workspace, node: Any) -> str:
    kind = "Mul" if node.op_type in _SQUARES else "Abs"
    size = made.emit(kind, node.input[0], *([node.input[0]] if kind == "Mul" else []))
    terms = made.constant(float(_terms(space, node)))
    if node.op_type in _SPATIAL:
        return made.emit("Mul", made.emit("GlobalAveragePool", size), terms)
    # ReduceMean has the attributes and inputs of every other Reduce at each opset, save for ReduceSum at 13 to 17
    if node.op_type == "ReduceSum":
        kind = "ReduceSum"
    else:
        kind = node.op_type if node.op_type in {"ReduceMean", "ReduceL1", "ReduceLogSum"} else "ReduceMean"
        kind = "ReduceMean" if kind == "ReduceLogSum" else kind
    name = f"{PREFIX}sum/{node.name}"
    copy = helper.make_node(kind, [size, *node.input[1:]], [name], name=name)
    copy.attribute.extend(node.attribute)
    made.nodes.append(copy)
    return made.emit("Mul", name, terms) if kind == "ReduceMean" else name
