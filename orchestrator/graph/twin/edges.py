"""Where a target rounds: pure analysis of a graph under a policy.

A *wire* is one float tensor: who writes it and who reads it. The edge rule is what a compiler does: a reader sees the raw
value only if neither the writer writes nor the reader reads in the low format; otherwise it sees the rounded value.
Rounding is idempotent, so behind pure movement of rounded data nothing is inserted. Subgraphs belong to the analysis:
what they read of the graphs around them are readers like any other; what goes in and out of If, Loop and Scan is passed
on as it is and rounded where somebody computes with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, Final, Literal

import onnx
from onnx import TensorProto

from orchestrator.ascend.precision import Policy, Rounding
from orchestrator.core.errors import GateError, PlanError
from orchestrator.graph.twin.element_types import UNKNOWN, output_types
from orchestrator.graph.twin.rounding import round_nodes, session_options
from orchestrator.graph.twin.wires import Edges, NodeUse, Place, Reader, Wire

__all__ = [
    "Edges",
    "NodeUse",
    "Place",
    "Reader",
    "Wire",
    "plan_edges",
    "round_nodes",
    "session_options",
    "subgraph_path",
]

FLOAT: Final = int(TensorProto.FLOAT)
OLDEST_OPSET: Final = 11
_LEFT_ALONE: Final = {
    UNKNOWN: "its type is not known (a sequence, an optional, or an operator without a schema)",
    int(TensorProto.DOUBLE): "float64",
}
CONTROL: Final = frozenset({"If", "Loop", "Scan"})
MOVEMENT: Final = frozenset({
    "Abs", "ArgMax", "ArgMin", "Ceil", "CenterCropPad", "Clip", "Compress", "Concat", "DepthToSpace", "Dropout", "Expand",
    "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "GlobalMaxPool", "Hardmax", "Identity", "Max", "MaxPool",
    "Min", "Neg", "OneHot", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "ReverseSequence", "Round", "Sign",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze",
    "Where",
})  # fmt: skip
"""Operators whose results are representable whenever their float inputs are: they move, select, or round to integers."""


def plan_edges(model: onnx.ModelProto, policy: Policy, keep: Collection[str] = ()) -> Edges:
    """Find every float tensor, and where it is rounded.

    Args:
        model: A graph in fp32; weights may be left in their external files.
        policy: What the target does.
        keep: Names of nodes that stay in fp32.

    Raises:
        GateError: The graph is of an opset below 11, has local functions, or computes in 16-bit floats itself.
        PlanError: `keep` names no node, or one that this SoC cannot compute in fp32.
    """
    opsets = {"" if item.domain == "ai.onnx" else item.domain: item.version for item in model.opset_import}
    oldest = 13 if policy.low == "bf16" else OLDEST_OPSET
    if opsets.get("", 0) < oldest:
        raise GateError(
            f"the twin needs opset {oldest} or newer, the graph has {opsets.get('', 0)}", hint="export at 18"
        )
    if model.functions:
        raise GateError("the graph has local functions", hint="inline them (onnx.inliner.inline_local_functions)")
    analysis = _Analysis(policy, frozenset(keep), opsets)
    analysis.graph(model.graph, "", [], ())
    analysis.check_keep()
    return Edges(policy.low, policy.saturating, analysis.wires, analysis.nodes, analysis.parents, analysis.unrounded)


def subgraph_path(node: Any, place: Place, attribute: str) -> str:
    """Return the path of the subgraph that an attribute of a node holds."""
    return f"{place.scope}/{node.name or node.op_type}@{place.index}.{attribute}"


class _Analysis:
    """One walk over a model in the order of execution."""

    def __init__(self, policy: Policy, keep: frozenset[str], opsets: Mapping[str, int]) -> None:
        self.policy = policy
        self.keep = keep
        self.opsets = opsets
        self.wires: dict[tuple[str, str], Wire] = {}
        self.nodes: dict[Place, NodeUse] = {}
        self.parents: dict[str, Place] = {}
        self.unrounded: dict[str, str] = {}
        self._types: dict[tuple[str, str], int] = {}

    def graph(
        self, graph: Any, scope: str, formals: list[tuple[int, Wire | None]], outer: tuple[str, ...] = ()
    ) -> None:
        """Walk a graph; `formals` are type and wire of what its inputs stand for, `outer` the paths around it."""
        scopes = (scope, *outer)
        weights = {tensor.name for tensor in graph.initializer}
        for tensor in graph.initializer:
            self._define(scope, tensor.name, tensor.data_type, "weight")
        for position, value in enumerate(item for item in graph.input if item.name not in weights):
            kind = int(value.type.tensor_type.elem_type)
            given, stands_for = formals[position] if position < len(formals) else (UNKNOWN, None)
            wire = self._define(scope, value.name, kind or given, "carried" if scope else "input")
            if wire is not None and stands_for is not None:
                wire.in_low = stands_for.in_low
        for index, node in enumerate(graph.node):
            self._node(node, Place(scope, index), scopes)
        for position, value in enumerate(graph.output):
            wire = self._wire(value.name, scopes)
            if wire is not None:
                wire.readers.append(Reader(Place(scope, -1), position, low=False))

    def check_keep(self) -> None:
        """Refuse kept nodes that do not exist or cannot be kept."""
        names = {use.name for use in self.nodes.values()}
        unknown = sorted(self.keep - names)
        if unknown:
            close = get_close_matches(unknown[0], names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "names are those of the ONNX nodes"
            raise PlanError(f"nodes to keep in fp32 that the graph does not have: {', '.join(unknown[:5])}", hint=hint)
        cannot = [use for use in self.nodes.values() if use.kept and not self.policy.can_keep(use.op_type)]
        if cannot:
            listed = ", ".join(f"{use.name!r} ({use.op_type})" for use in cannot[:5])
            raise PlanError(
                f"{self.policy.soc} has no fp32 kernel for {listed}",
                hint="scale the values, or keep the nodes around it",
            )

    def _define(
        self, scope: str, name: str, kind: int, what: Literal["node", "weight", "input", "carried"]
    ) -> Wire | None:
        self._types[scope, name] = kind
        if kind in _LEFT_ALONE and name:
            self.unrounded[f"{scope}:{name}" if scope else name] = _LEFT_ALONE[kind]
        if kind != FLOAT or not name:
            return None
        wire = self.wires[scope, name] = Wire(scope, name, what)
        return wire

    def _scope_of(self, name: str, scopes: tuple[str, ...]) -> str | None:
        return next((scope for scope in scopes if (scope, name) in self._types), None)

    def _wire(self, name: str, scopes: tuple[str, ...]) -> Wire | None:
        scope = self._scope_of(name, scopes)
        return None if scope is None else self.wires.get((scope, name))

    def _type(self, name: str, scopes: tuple[str, ...]) -> int:
        scope = self._scope_of(name, scopes)
        return UNKNOWN if scope is None else self._types[scope, name]

    def _node(self, node: Any, place: Place, scopes: tuple[str, ...]) -> None:
        kinds = [self._type(name, scopes) for name in node.input]
        if node.op_type in CONTROL and not node.domain:
            self._control(node, place, scopes, kinds)
            return
        made = output_types(node, kinds, self.opsets.get("" if node.domain == "ai.onnx" else node.domain, 1))
        self._refuse_halves(node, kinds, made)
        read = [(index, self._wire(name, scopes)) for index, name in enumerate(node.input)]
        floats = [(index, wire) for index, wire in read if wire is not None]
        kept = bool(node.name) and node.name in self.keep
        rounding = self._rounding(node, kept, [wire for _, wire in floats])
        data = [(index, wire) for index, wire in floats if index not in rounding.wide_inputs]
        readers = {
            index: Reader(place, index, low=rounding.inputs != "keep" and index not in rounding.wide_inputs)
            for index, _ in floats
        }
        for index, wire in floats:
            wire.readers.append(readers[index])
        movement = _is_movement(node)
        already = movement and all(wire.already or wire.sees_rounded(readers[index]) for index, wire in data)
        low = rounding.output != "keep"
        for name, kind in zip(node.output, made, strict=False):
            wire = self._define(place.scope, name, kind, "weight" if node.op_type == "Constant" else "node")
            if wire is not None:
                wire.writer = place
                if node.op_type != "Constant":
                    wire.low, wire.already, wire.in_low = low, already and bool(data), low
        narrow = low and self.policy.accumulates(node.op_type) != "fp32"
        self.nodes[place] = NodeUse(place, node.name, node.op_type, rounding, kept, movement, narrow)

    def _rounding(self, node: Any, kept: bool, floats: list[Wire]) -> Rounding:
        found = self.policy.of(node.op_type, node.domain)
        if kept:
            return Rounding("keep", "keep", wide_inputs=found.wide_inputs)
        first = next((wire for wire in floats if wire.kind != "weight"), None)
        if found.follows and not (first is not None and first.in_low):
            return Rounding("keep", "keep", wide_inputs=found.wide_inputs)
        return Rounding(found.inputs, found.output, wide_inputs=found.wide_inputs)

    def _control(self, node: Any, place: Place, scopes: tuple[str, ...], kinds: list[int]) -> None:
        wires = [self._wire(name, scopes) for name in node.input]
        for index, wire in enumerate(wires):
            if wire is not None:
                wire.readers.append(Reader(place, index, low=False))
        self.nodes[place] = NodeUse(
            place, node.name, node.op_type, Rounding("keep", "keep"), node.name in self.keep, True, False
        )
        formals = [] if node.op_type == "If" else list(zip(kinds, wires, strict=True))
        results: list[list[tuple[int, Wire | None]]] = []
        held = [(attribute.name, attribute.g) for attribute in node.attribute if attribute.HasField("g")]
        for name, graph in held:
            path = subgraph_path(node, place, name)
            self.parents[path] = place
            self.graph(graph, path, formals, scopes)
            inner = (path, *scopes)
            results.append([(self._type(out.name, inner), self._wire(out.name, inner)) for out in graph.output])
        skipped = 1 if node.op_type == "Loop" else 0  # the body's first output says whether to go on
        for position, name in enumerate(node.output):
            ends = [branch[position + skipped] for branch in results if position + skipped < len(branch)]
            wire = self._define(place.scope, name, ends[0][0] if ends else UNKNOWN, "carried")
            if wire is not None:
                wire.writer = place
                wire.in_low = all(end is not None and bool(end.in_low) for _, end in ends)

    def _refuse_halves(self, node: Any, inputs: list[int], outputs: list[int]) -> None:
        halves = {int(TensorProto.FLOAT16), int(TensorProto.BFLOAT16)}
        if node.op_type not in {"Cast", "Constant", "Identity"} and halves & {*inputs, *outputs}:
            raise GateError(
                f"node {node.name!r} ({node.op_type}) computes in 16-bit floats; a twin is made of an fp32 graph",
                hint="export the model in float32: the precision mode decides what becomes 16 bits",
            )


def _is_movement(node: Any) -> bool:
    if node.domain not in {"", "ai.onnx"}:
        return False
    attributes = {item.name: item for item in node.attribute}
    if node.op_type in {"Resize", "Upsample"}:
        return "mode" not in attributes or attributes["mode"].s == b"nearest"
    if node.op_type in {"ScatterElements", "ScatterND", "Scatter"}:
        return "reduction" not in attributes or attributes["reduction"].s == b"none"
    return node.op_type in MOVEMENT
