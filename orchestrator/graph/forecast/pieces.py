"""The twin taken apart node by node, so that its pieces can be put beside the fp32 graph, one at a time or all at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from orchestrator.ascend.precision import Low, Policy
from orchestrator.graph.forecast.workspace import Workspace
from orchestrator.graph.twin.edges import plan_edges
from orchestrator.graph.twin.emulate import build_twin
from orchestrator.graph.twin.recurrent import RECURRENT
from orchestrator.graph.twin.rounding import round_weight
from orchestrator.graph.twin.wires import Edges, Place, Reader, Wire


@dataclass(frozen=True, slots=True)
class Pieces:
    """The twin of a workspace's graph.

    Attributes:
        edges: Where it rounds.
        head: Nodes that round the graph's inputs.
        groups: Per node of the main graph, what stands for it: its copy first, then the rounding of its results.
        initializers: Its weights, rounded where they are read so.
        rounded: Tensor of the main graph -> what the twin calls its rounded value.
    """

    policy: Policy
    edges: Edges
    head: tuple[Any, ...]
    groups: tuple[tuple[Any, ...], ...]
    initializers: tuple[Any, ...]
    rounded: Mapping[str, str]

    @property
    def nodes(self) -> list[Any]:
        """All nodes, in order."""
        return [*self.head, *(node for group in self.groups for node in group)]

    def wire(self, tensor: str) -> Wire | None:
        """Return the float tensor of the main graph with that name."""
        return self.edges.wires.get(("", tensor))


class _Stored:
    """Weights of a twin in the workspace's file; each is rounded once, whatever number of twins is made."""

    def __init__(self, space: Workspace, low: Low, *, saturating: bool) -> None:
        self._space, self._saturating = space, saturating
        self._low: Low = low

    def as_is(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        return tensor

    def rounded(self, tensor: onnx.TensorProto, name: str) -> onnx.TensorProto | None:
        key = f"{tensor.name}|{self._low}|{self._saturating}"
        made = self._space.rounded.get(key)
        if made is None:
            values = self._space.values(tensor)
            made = self._space.store(key, round_weight(values, self._low, saturating=self._saturating))
            self._space.rounded[key] = made
        copy = onnx.TensorProto()
        copy.CopyFrom(made)
        copy.name = name
        return copy


def take_apart(space: Workspace, policy: Policy, *, keep: Collection[str] = (), every_edge: bool = False) -> Pieces:
    """Make the twin and find which of its nodes belong together.

    Args:
        space: The graph.
        policy: What the target does.
        keep: Nodes in fp32.
        every_edge: Round behind movement of rounded data too, where it changes nothing, so that a copy of every tensor
            is at hand for readers that may be switched.

    Raises:
        GateError, PlanError: As `emulate`.
    """
    edges = plan_edges(space.model, policy, keep)
    if every_edge:
        for wire in edges.in_scope(""):
            wire.already = False
    weights = _Stored(space, edges.low, saturating=edges.saturating)
    twin = build_twin(space.model, policy, edges, weights)
    head, groups = _group(list(space.graph.node), twin.graph.node)
    rounded = _rounded_names(edges, twin.graph)
    return Pieces(policy, edges, tuple(head), tuple(map(tuple, groups)), tuple(twin.graph.initializer), rounded)


def _group(originals: list[Any], nodes: Iterable[Any]) -> tuple[list[Any], list[list[Any]]]:
    """Split the twin's nodes: each group begins with the copy of one original, or the first step of a recurrent one."""
    head: list[Any] = []
    groups: list[list[Any]] = []
    for node in nodes:
        original = originals[len(groups)] if len(groups) < len(originals) else None
        if original is not None and _stands_for(node, original):
            groups.append([node])
        else:
            (groups[-1] if groups else head).append(node)
    if len(groups) != len(originals):
        raise AssertionError(f"the twin has {len(groups)} of {len(originals)} nodes")
    return head, groups


def _stands_for(node: Any, original: Any) -> bool:
    if (node.name, node.op_type) == (original.name, original.op_type):
        return True
    return original.op_type in RECURRENT and node.name.startswith(f"{original.name}/steps/")


def _rounded_names(edges: Edges, graph: Any) -> dict[str, str]:
    made = {node.name: node.output[0] for node in graph.node if node.name.endswith("/round/up")}
    made |= {node.output[0]: node.output[0] for node in graph.node if node.op_type == "Constant"}
    made |= {tensor.name: tensor.name for tensor in graph.initializer}
    found: dict[str, str] = {}
    for wire in edges.in_scope(""):
        if wire.rounds:
            beside = (f"{wire.name}/round/up", f"{wire.name}/{edges.low}", wire.name)
            found[wire.name] = wire.name if wire.low else next((made[n] for n in beside if n in made), wire.name)
    return found


def renamed(node: Any, names: Mapping[str, str]) -> Any:
    """Return a copy of a node with its tensors renamed, those that its subgraphs capture included."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    _rename(copy, names)
    return copy


def _rename(node: Any, names: Mapping[str, str]) -> None:
    for index, name in enumerate(node.input):
        node.input[index] = names.get(name, name)
    for index, name in enumerate(node.output):
        node.output[index] = names.get(name, name)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                _rename(inner, names)
            for value in attribute.g.output:  # an outer tensor may be a body's result
                value.name = names.get(value.name, value.name)


def holder(edges: Edges, place: Place) -> Place:
    """Return the node of the main graph that is, or holds, the node at `place`."""
    while place.scope:
        place = edges.parents[place.scope]
    return place


def readers(edges: Edges, wire: Wire) -> list[tuple[Place, Reader]]:
    """Return the nodes of the main graph that read a wire of it, themselves or in a subgraph; no graph outputs."""
    return [
        (holder(edges, reader.place), reader)
        for reader in wire.readers
        if not (reader.is_output and not reader.place.scope)
    ]
