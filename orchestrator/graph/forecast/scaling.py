"""What to do where fp32 is no way out: let the graph compute a power-of-two share of the value, exactly.

A node without an fp32 kernel (Conv and MatMul on chips whose matrix unit multiplies only fp16) that overflows can still be
saved: its weights times 2^-k make its result smaller, every operator that the factor passes through is homogeneous, and
the next weights, a normalization or one multiplication take it out again. Powers of two change no digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from orchestrator.graph.forecast.ranges import TensorRange
from orchestrator.graph.forecast.workspace import Workspace

HEADROOM: Final = 0.25
"""Share of the format's end that a scaled tensor may reach."""

_SAME: Final = frozenset({
    "Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum",
    "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "Identity", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze",
    "Flatten", "Split", "Expand", "Tile", "Abs", "Neg", "Dropout", "Gather", "DepthToSpace", "SpaceToDepth",
})  # fmt: skip
"""Homogeneous of degree one in their first input; the others are indices, axes, shapes."""
_ALIKE: Final = frozenset({"Add", "Sub", "Sum", "Concat", "Max", "Min"})
"""All float inputs must be scaled alike."""
_LINEAR: Final = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose"})
_INVARIANT: Final = frozenset({"LayerNormalization", "InstanceNormalization"})
"""A scaled input changes nothing once epsilon is scaled by the square."""
_MULTIPLIED: Final = frozenset({"Mul", "Div", "MatMul", "Pow", "Sqrt", "Reciprocal"})
"""The factor of the result follows from those of all inputs."""
_MOST_STEPS: Final = 2000


class NoWay(Exception):
    """The factor meets an operator that it cannot pass."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is proposed for tensors that overflow at nodes that cannot be kept.

    Attributes:
        status: `proved`: run in fp32 and as a twin, figures below; `blocked`: nothing was found, `text` says why.
        changes: Node -> what changes there.
        max_abs: Largest difference of an fp32 output from the original's.
        sqnr_db_before, sqnr_db_after: Of the twin, worst sample of the worst output.
    """

    tensors: tuple[str, ...]
    status: Literal["proved", "blocked"]
    text: str
    changes: Mapping[str, str] = field(default_factory=dict[str, str])
    max_abs: float | None = None
    sqnr_db_before: float | None = None
    sqnr_db_after: float | None = None

    def to_json(self) -> dict[str, object]:
        """Return all fields."""
        return {
            "tensors": list(self.tensors), "status": self.status, "text": self.text, "changes": dict(self.changes),
            "max_abs": self.max_abs, "sqnr_db_before": self.sqnr_db_before, "sqnr_db_after": self.sqnr_db_after,
        }  # fmt: skip


class Scaling:
    """Spreads a power of two through a graph until it has vanished.

    Args:
        space: The graph.
        ranges: What each tensor reaches, unscaled.
        largest: The end of the format.
        uniform: One exponent for all tensors; None takes for each what it needs.

    Attributes:
        exponents: Tensor -> power of two that it is multiplied by.
        weights: (id of node, input) -> exponent of that constant; `rescaled` alike, of a multiplication to insert there.
        epsilons: id of node -> exponent of its epsilon.
        changes: Node -> what changes there, for people.
    """

    def __init__(
        self, space: Workspace, ranges: Mapping[str, TensorRange], largest: float, uniform: int | None = None
    ) -> None:
        self.space, self._ranges, self._largest, self._uniform = space, ranges, largest, uniform
        self.nodes = list(space.graph.node)
        self._maker = {name: node for node in self.nodes for name in node.output if name}
        self._users: dict[str, list[tuple[Any, int]]] = {}
        for node in self.nodes:
            for position, name in enumerate(node.input):
                self._users.setdefault(name, []).append((node, position))
        self._captured = _captured(self.nodes)
        self.results = {entry.name for entry in space.graph.output}
        self.exponents: dict[str, int] = {}
        self.rescaled: dict[tuple[int, int], int] = {}
        self.weights: dict[tuple[int, int], int] = {}
        self.epsilons: dict[int, int] = {}
        self._todo: list[str] = []
        self._deferred: dict[int, int] = {}
        self._place = {id(node): place for place, node in enumerate(self.nodes)}
        self.changes: dict[str, str] = {}

    def spread(self, tensor: str) -> None:
        """Scale `tensor` down into the format, and whatever must follow.

        Raises:
            NoWay: It cannot be done.
        """
        if not self._begin(tensor):
            return
        for _ in range(_MOST_STEPS):
            if self._todo:
                name = self._todo.pop()
                self._make(name)
                for node, position in self._users.get(name, ()):
                    self._pass(node, position)
            elif self._deferred:
                first = min(self._deferred)
                self._multiplied(self.nodes[first], self._deferred.pop(first))
            else:
                self._settle()
                return
        raise NoWay(f"the factor for {tensor} spreads through the whole graph")

    def _begin(self, tensor: str) -> bool:
        """Scale the tensor itself; False where that is done already."""
        if not math.isfinite(self._ranges[tensor].absmax):
            raise NoWay(f"{tensor} is not finite in fp32")
        if tensor in self.results:
            raise NoWay(f"{tensor} is an output of the model, and the format cannot hold it")
        now = self.exponents.get(tensor, 0)
        wanted = self.needed(tensor) if self._uniform is None else self._uniform
        if now <= self.needed(tensor):
            return False
        if now:
            raise NoWay(f"{tensor} would need two factors")
        if tensor in self.space.weights:
            for node, _ in self._users.get(tensor, ()):
                self._set(node.output[0], wanted)
        else:
            self._set(tensor, wanted)
        return True

    def needed(self, tensor: str) -> int:
        """Return the exponent that brings a tensor well into the format."""
        return -max(0, math.ceil(math.log2(self._ranges[tensor].absmax / (self._largest * HEADROOM))))

    def _set(self, name: str, exponent: int) -> None:
        known = self.exponents.get(name)
        if known is None:
            if name in self._captured:
                raise NoWay(f"{name} is read inside a subgraph")
            self.exponents[name] = exponent
            self._todo.append(name)
        elif known != exponent:
            raise NoWay(f"{name} would need two factors, 2^{known} and 2^{exponent}")

    def _make(self, name: str) -> None:
        """See to it that the writer of `name` writes it scaled."""
        node, exponent = self._maker.get(name), self.exponents[name]
        if node is None:
            raise NoWay(f"{name} is an input of the graph: scale what is fed, or the first weights")
        if node.op_type in _LINEAR and self._constant(node, 1):
            given = self.exponents.get(node.input[0], 0)
            if exponent != given:
                self.changes[node.name] = f"weights x 2^{exponent - given}"
        elif node.op_type in _SAME:
            self._set(node.input[0], exponent)
        elif node.op_type in _ALIKE:
            for position, other in enumerate(node.input):
                if not self._constant(node, position):
                    self._set(other, exponent)
        else:
            self._make_product(node, name, exponent)

    def _make_product(self, node: Any, name: str, exponent: int) -> None:
        given = [self.exponents.get(n, 0) for n in node.input]
        if node.op_type in {"Mul", "Div"} and any(self._constant(node, p) for p in (0, 1)):
            self.changes[node.name] = f"its constant x 2^{exponent}"
        elif node.op_type in _MULTIPLIED and _degree(self, node) == exponent:
            return
        elif node.op_type in {"Mul", "MatMul"}:
            self.rescaled[id(node), 0] = exponent - sum(given)
            self.changes[node.name] = f"input {node.input[0]} x 2^{exponent - sum(given)}"
        else:
            raise NoWay(f"{node.op_type} {node.name!r} writes {name}, and a factor cannot be moved before it")

    def _pass(self, node: Any, position: int) -> None:
        """Let a reader of a scaled tensor pass the factor on, or take it out."""
        exponent = self.exponents[node.input[position]]
        if node.op_type in _SAME and position == 0:
            for name in node.output:
                self._set(name, exponent)
        elif node.op_type in _ALIKE:
            self._set(node.output[0], exponent)
        elif node.op_type in _LINEAR and position == 0 and self._constant(node, 1):
            if node.output[0] not in self.exponents and not self._weight_fits(node, -exponent):
                self._set(node.output[0], exponent)
        elif node.op_type in _INVARIANT and position == 0:
            self.epsilons[id(node)] = 2 * exponent
            self.changes[node.name] = f"epsilon x 2^{2 * exponent}"
        elif node.op_type in _MULTIPLIED:
            self._deferred.setdefault(self._place[id(node)], position)  # until the factors of all its inputs are known
        else:
            self._take_out(node, position, exponent)

    def _multiplied(self, node: Any, position: int) -> None:
        degree = _degree(self, node)
        if degree is None:
            self._take_out(node, position, self.exponents[node.input[position]])
        elif degree:
            self._set(node.output[0], degree)

    def _take_out(self, node: Any, position: int, exponent: int) -> None:
        name = node.input[position]
        if name in self._ranges and self._ranges[name].absmax > self._largest * 0.5:
            raise NoWay(f"{node.op_type} {node.name!r} needs {name} as it is, which the format cannot hold")
        self.rescaled[id(node), position] = -exponent
        self.changes[node.name] = f"input {name} x 2^{-exponent}"

    def _constant(self, node: Any, position: int) -> bool:
        return position < len(node.input) and node.input[position] in self.space.weights

    def _weight_fits(self, node: Any, exponent: int) -> bool:
        weight = self._ranges.get(node.input[1])
        return weight is not None and weight.absmax * 2.0**exponent <= self._largest * 0.5

    def _settle(self) -> None:
        """Decide every weight's factor, now that the factors of all tensors are known."""
        for node in self.nodes:
            out = self.exponents.get(node.output[0], 0) if node.output else 0
            given = [
                self.exponents.get(name, 0) + self.rescaled.get((id(node), p), 0) for p, name in enumerate(node.input)
            ]
            if node.op_type in _LINEAR and self._constant(node, 1):
                self._factor(node, 1, out - given[0])
                self._factor(node, 2, out)
            elif node.op_type in _ALIKE:
                for position in range(len(node.input)):
                    self._factor(node, position, out)
            elif node.op_type in {"Mul", "Div"}:
                constant = next((p for p in (1, 0) if self._constant(node, p)), None)
                if constant is not None:
                    sign = -1 if node.op_type == "Div" and constant == 1 else 1
                    self._factor(node, constant, sign * (out - given[1 - constant] * (1 if constant else sign)))

    def _factor(self, node: Any, position: int, exponent: int) -> None:
        if exponent and self._constant(node, position):
            self.weights[id(node), position] = exponent
            self.changes.setdefault(node.name, f"{node.input[position]} x 2^{exponent}")


def _degree(scaling: Scaling, node: Any) -> int | None:
    """Return the exponent that the factors of a node's inputs give its output; None where that is no power of two."""
    first, *rest = (scaling.exponents.get(name, 0) for name in node.input)
    if node.op_type in {"Mul", "MatMul"}:
        return first + rest[0]
    if node.op_type == "Div":
        return first - rest[0]
    if node.op_type == "Reciprocal":
        return -first
    if node.op_type == "Sqrt":
        return first // 2 if first % 2 == 0 else None
    weights = scaling.space.weights
    power = scaling.space.weight(node.input[1]) if node.input[1] in weights else None
    if power is None or power.size != 1 or not float(power.ravel()[0]).is_integer():
        return None
    return int(first * float(power.ravel()[0]))


def _captured(nodes: list[Any]) -> frozenset[str]:
    found: set[str] = set()
    todo = [attribute.g for node in nodes for attribute in node.attribute if attribute.HasField("g")]
    while todo:
        graph = todo.pop()
        found.update(value.name for value in graph.output)
        for node in graph.node:
            found.update(node.input)
            todo += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return frozenset(found)
