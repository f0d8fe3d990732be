"""Making the twin: the fp32 graph with its rounding written out as nodes.

All computing stays in fp32, so the numbers do not depend on which 16-bit kernels a CPU or a runtime has (ONNX Runtime runs
fp16 graphs on a CPU in fp32 and drops the casts between nodes: such a run finds no overflow at all).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final, cast

import onnx
from onnx import TensorProto, helper, numpy_helper

from orchestrator.ascend.precision import Policy
from orchestrator.graph.twin.edges import plan_edges, subgraph_path
from orchestrator.graph.twin.narrow_sums import narrow_sum
from orchestrator.graph.twin.recurrent import recurrent_nodes
from orchestrator.graph.twin.rounding import COPY_LIMIT_BYTES, round_nodes
from orchestrator.graph.twin.weights import InMemory, Weights
from orchestrator.graph.twin.wires import Edges, Place, Wire

METADATA_KEY: Final = "orchestrate.twin"
"""Key of the model's metadata that tells a twin from a plain graph; its value is the policy in JSON."""

_numpy_helper = cast("Any", numpy_helper)  # partly untyped
_helper = cast("Any", helper)  # partly untyped


def emulate(model: onnx.ModelProto, policy: Policy, *, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Return the graph with explicit rounding; the given model is not changed.

    Names of inputs, outputs, nodes and of every tensor that nodes write in the low format stay: the value as computed is
    `<tensor>/raw` then, and `<tensor>` is the rounded one. Other tensors get a rounded `<tensor>/fp16` beside them.

    Raises:
        GateError: The graph is of an opset below 11, has local functions, or computes in 16-bit floats itself.
        PlanError: `keep` names no node, or one that this SoC cannot compute in fp32.
    """
    edges = plan_edges(model, policy, keep)
    return build_twin(model, policy, edges, InMemory(edges.low, saturating=edges.saturating))


def build_twin(model: onnx.ModelProto, policy: Policy, edges: Edges, weights: Weights) -> onnx.ModelProto:
    """Return the twin of a graph whose edges are planned, its weights taken from `weights`."""
    twin = onnx.ModelProto()
    twin.CopyFrom(_without_graph(model))
    _Builder(edges, weights).graph(model.graph, "", twin.graph)
    entry = twin.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(policy.to_json(), sort_keys=True)
    return twin


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    head = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        if field.is_repeated:
            getattr(head, field.name).extend(value)
        else:
            setattr(head, field.name, value)
    return head


class _Builder:
    """Rewrites a graph and those inside it."""

    def __init__(self, edges: Edges, weights: Weights) -> None:
        self._edges = edges
        self._weights = weights
        self._swaps: dict[tuple[Place, int], str] = {}
        taken = {name for _, name in edges.wires}
        self._rounded: dict[tuple[str, str], str] = {}
        for key, wire in edges.wires.items():
            if not wire.rounds:
                continue
            name = wire.name
            if not wire.low and (wire.stays_raw or wire.kind in {"input", "carried", "node"}):
                name = _free(f"{wire.name}/{edges.low}", taken)
                self._swaps.update({(r.place, r.index): name for r in wire.readers if wire.sees_rounded(r)})
            self._rounded[key] = name

    def graph(self, graph: Any, scope: str, made: Any) -> None:
        """Write the graph at `scope` with its rounding into `made`, which is empty."""
        made.name, made.doc_string = graph.name, graph.doc_string
        for field in (
            "input",
            "output",
            "value_info",
            "quantization_annotation",
            "metadata_props",
            "sparse_initializer",
        ):
            getattr(made, field).extend(getattr(graph, field))
        before: dict[int, list[onnx.NodeProto]] = {}
        for tensor in graph.initializer:
            self._weight(tensor, scope, made, before)
        for wire in self._edges.in_scope(scope):
            if wire.writer is None and wire.kind != "weight" and wire.rounds:
                made.node.extend(self._round(wire, wire.name))
        for index, node in enumerate(graph.node):
            made.node.extend(before.get(index, ()))
            self._node(node, Place(scope, index), made)

    def _weight(self, tensor: Any, scope: str, made: Any, before: dict[int, list[onnx.NodeProto]]) -> None:
        wire = self._edges.wires.get((scope, tensor.name))
        if wire is None or not wire.rounds:
            made.initializer.append(self._weights.as_is(tensor))
            return
        name = self._rounded[scope, tensor.name]
        twice = name != tensor.name
        rounded = None if twice and _size_bytes(tensor) > COPY_LIMIT_BYTES else self._weights.rounded(tensor, name)
        if rounded is not None:
            made.initializer.append(rounded)
            if twice:
                made.initializer.append(self._weights.as_is(tensor))
            return
        if not twice:  # the name now means the rounded one, so the stored one needs another
            stored = onnx.TensorProto()
            stored.CopyFrom(self._weights.as_is(tensor))
            stored.name = f"{tensor.name}/stored"
        else:
            stored = self._weights.as_is(tensor)
        made.initializer.append(stored)
        before.setdefault(self._edges.first_use(wire), []).extend(self._round(wire, stored.name, clip=True))

    def _node(self, node: Any, place: Place, made: Any) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for index, name in enumerate(node.input):
            copy.input[index] = self._swaps.get((place, index)) or name
        for attribute in copy.attribute:
            if attribute.HasField("g"):
                path = subgraph_path(node, place, attribute.name)
                inner = next(item.g for item in node.attribute if item.name == attribute.name)
                attribute.g.Clear()
                self.graph(inner, path, attribute.g)
        made.node.extend((self._constant if node.op_type == "Constant" else self._results)(node, copy, place))

    def _constant(self, node: Any, copy: Any, place: Place) -> list[onnx.NodeProto]:
        wire = self._edges.wires.get((place.scope, node.output[0]))
        if wire is None or not wire.rounds:
            return [copy]
        name = self._rounded[place.scope, wire.name]
        tensor = self._weights.rounded(_constant_tensor(node), name)
        if tensor is None:  # its data lie in an external file: the graph rounds them
            source = copy.output[0] = f"{wire.name}/stored" if name == wire.name else wire.name
            return [copy, *self._round(wire, source, clip=True)]
        if name == wire.name:
            return [_helper.make_node("Constant", [], [name], name=node.name, value=tensor)]
        return [copy, _helper.make_node("Constant", [], [name], name=f"{wire.name}/{self._edges.low}", value=tensor)]

    def _results(self, node: Any, copy: Any, place: Place) -> list[onnx.NodeProto]:
        use, low, saturating = self._edges.nodes[place], self._edges.low, self._edges.saturating
        after: list[onnx.NodeProto] = []
        for index, name in enumerate(node.output):
            wire = self._edges.wires.get((place.scope, name))
            if wire is None:
                continue
            raw = name
            if wire.rounds and wire.low:
                raw = copy.output[index] = f"{name}/raw"
            if index == 0 and use.narrow_sum:
                copy.output[0] = f"{name}/wide"
                after += narrow_sum(copy, copy.output[0], raw, low, saturating=saturating)
            if wire.rounds:
                after += self._round(wire, raw)
        steps = recurrent_nodes(copy, use.rounding, low, saturating=saturating)
        return [*(steps or [copy]), *after]

    def _round(self, wire: Wire, source: str, *, clip: bool = False) -> list[onnx.NodeProto]:
        """Return the nodes that round `source`; `clip` is the rule for weights, which saturate on every SoC."""
        target = self._rounded[wire.scope, wire.name]
        prefix = f"{wire.name}/round" if not wire.scope else f"{wire.scope}/{wire.name}/round"
        saturating = self._edges.saturating or clip
        return round_nodes(source, target, self._edges.low, saturating=saturating, prefix=prefix)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _size_bytes(tensor: Any) -> int:
    size = 4
    for dim in tensor.dims:
        size *= dim
    return size


def _constant_tensor(node: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name == "value_float":
            return _helper.make_tensor(node.output[0], TensorProto.FLOAT, [], [attribute.f])
        if attribute.name == "value_floats":
            return _helper.make_tensor(node.output[0], TensorProto.FLOAT, [len(attribute.floats)], attribute.floats)
    raise ValueError(f"constant {node.name!r} has no value")
