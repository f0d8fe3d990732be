"""One session for the whole search: which nodes are kept is an input of the graph, not a reason to build another.

On every edge that a candidate touches stands `Where(keep[writer] and keep[reader], raw, rounded)`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper

from orchestrator.graph.forecast.batches import Batches
from orchestrator.graph.forecast.instrument import PREFIX, Instrument
from orchestrator.graph.forecast.pieces import Pieces, take_apart
from orchestrator.graph.forecast.workspace import Workspace
from orchestrator.graph.parity import OutputMetrics, compare
from orchestrator.graph.twin.wires import Reader, Wire

Array = np.ndarray[Any, Any]
_MASK: Final = f"{PREFIX}mask"
_RAW: Final = f"{PREFIX}weight/"


@dataclass(slots=True)
class MaskSession:
    """Answers what the outputs are when a given set of candidates is kept besides those that are kept anyway.

    Attributes:
        candidates: Names of nodes that may be switched, main graph only.
        runs: Number of candidates sets that were really run.
    """

    candidates: tuple[str, ...]
    runs: int
    _space: Workspace
    _session: Any
    _outputs: list[str]
    _names: list[str]
    _batches: Batches
    _reference: Mapping[str, Array]
    _known: dict[frozenset[str], dict[str, OutputMetrics]] = field(
        default_factory=dict[frozenset[str], "dict[str, OutputMetrics]"]
    )

    def metrics(self, keep: Collection[str]) -> dict[str, OutputMetrics]:
        """Return every output's metrics against fp32 with `keep` kept.

        Raises:
            GateError: The runtime fails.
        """
        wanted = frozenset(keep) & frozenset(self.candidates)
        if wanted not in self._known:
            self.runs += 1
            mask = np.array([name in wanted for name in self.candidates] or [False])
            pieces = [self._space.run(self._session, self._outputs, {**feed, _MASK: mask}) for feed in self._batches]
            found = {name: np.concatenate([piece[place] for piece in pieces]) for place, name in enumerate(self._names)}
            self._known[wanted] = compare(self._reference, found)
        return self._known[wanted]


def open_mask_session(
    space: Workspace,
    pieces: Pieces,
    *,
    must: Collection[str],
    candidates: Sequence[str],
    batches: Batches,
    reference: Mapping[str, Array],
) -> MaskSession:
    """Build the session.

    Args:
        space: The graph.
        pieces: Its twin; only the policy is used, the twin is made anew with `must` kept.
        must: Nodes that are always kept.
        candidates: Nodes that may be.
        batches: Samples to judge by.
        reference: fp32 outputs on them.

    Raises:
        GateError: The runtime cannot load the graph.
    """
    twin = take_apart(space, pieces.policy, keep=must, every_edge=True)
    made = Instrument(space)
    made.initializers += [t for t in twin.initializers if not _is_own(space, t)]
    builder = _Builder(space, twin, made, {name: slot for slot, name in enumerate(candidates)})
    outputs = builder.build()
    model = _model(space, made, outputs)
    own = [entry.name for entry in space.graph.output]
    return MaskSession(tuple(candidates), 0, space, space.session(model), outputs, own, batches, reference)


def _is_own(space: Workspace, tensor: Any) -> bool:
    mine = space.weights.get(tensor.name)
    return mine is not None and mine.SerializeToString() == tensor.SerializeToString()


def _model(space: Workspace, made: Instrument, outputs: list[str]) -> Any:
    replaced = {tensor.name for tensor in made.initializers}
    kinds = [entry.type for entry in space.graph.output]
    entries = [helper.make_value_info(name, kind) for name, kind in zip(outputs, kinds, strict=True)]
    model = space.derived(made.nodes, outputs=entries)
    mine = [tensor for tensor in model.graph.initializer if tensor.name not in replaced]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*mine, *made.initializers])
    model.graph.input.append(helper.make_tensor_value_info(_MASK, TensorProto.BOOL, [None]))
    return model


class _Builder:
    """Puts the switches into the twin."""

    def __init__(self, space: Workspace, twin: Pieces, made: Instrument, slots: Mapping[str, int]) -> None:
        self._space, self._twin, self._made = space, twin, made
        nodes = list(space.graph.node)
        self._slot = {index: slots[node.name] for index, node in enumerate(nodes) if node.name in slots}
        self._flags: dict[int, str] = {}
        self._switches: dict[tuple[str, tuple[int, ...]], str] = {}
        self._rounded = twin.rounded

    def build(self) -> list[str]:
        """Emit all nodes; return the names of the graph's outputs."""
        self._made.nodes += self._twin.head
        for slot in sorted(set(self._slot.values())):
            self._flags[slot] = self._made.emit("Gather", _MASK, self._made.constant(slot, np.int64))
        for index, group in enumerate(self._twin.groups):
            copy = type(group[0])()
            copy.CopyFrom(group[0])
            original = self._space.graph.node[index]
            if copy.op_type == original.op_type:  # a recurrent node that was taken apart has no switches
                for position, name in enumerate(original.input):
                    copy.input[position] = self._input(index, position, name, copy.input[position])
            self._made.nodes.append(copy)
            self._made.nodes += self._without_narrow(index, copy, group[1:])
        return [self._output(entry.name) for entry in self._space.graph.output]

    def _input(self, index: int, position: int, name: str, given: str) -> str:
        wire = self._twin.wire(name)
        if wire is None:
            return given
        reader = next(r for r in wire.readers if (r.place.scope, r.place.index, r.index) == ("", index, position))
        terms = self._terms(wire, reader)
        return given if terms is None else self._switch(wire, terms)

    def _terms(self, wire: Wire, reader: Reader) -> tuple[int, ...] | None:
        """Return the slots that must all be kept for a raw edge; None where no choice changes it."""
        if not wire.sees_rounded(reader):
            return None
        sides = [wire.writer.index if wire.writer else -1] if wire.low else []
        sides += [reader.place.index] if reader.low else []
        if not all(index in self._slot for index in sides):
            return None
        return tuple(sorted({self._slot[index] for index in sides}))

    def _switch(self, wire: Wire, terms: tuple[int, ...]) -> str:
        key = (wire.name, terms)
        if key not in self._switches:
            flag = self._flags[terms[0]]
            for slot in terms[1:]:
                flag = self._made.emit("And", flag, self._flags[slot])
            self._switches[key] = self._made.emit("Where", flag, self._raw(wire), self._rounded[wire.name])
        return self._switches[key]

    def _raw(self, wire: Wire) -> str:
        if wire.kind == "weight" and wire.name in self._space.weights:
            if self._rounded[wire.name] != wire.name:
                return wire.name
            name = f"{_RAW}{wire.name}"
            if all(tensor.name != name for tensor in self._made.initializers):
                tensor = type(self._space.weights[wire.name])()
                tensor.CopyFrom(self._space.weights[wire.name])
                tensor.name = name
                self._made.initializers.append(tensor)
            return name
        if wire.kind == "weight":  # a small Constant node: only its rounded form is in the graph
            return self._constant(wire)
        return f"{wire.name}/raw" if wire.low else wire.name

    def _constant(self, wire: Wire) -> str:
        assert wire.writer is not None
        if self._rounded[wire.name] != wire.name:
            return wire.name
        name = f"{_RAW}{wire.name}"
        node = type(self._space.graph.node[wire.writer.index])()
        node.CopyFrom(self._space.graph.node[wire.writer.index])
        node.name = node.output[0] = name
        if all(made.name != name for made in self._made.nodes):
            self._made.nodes.append(node)
        return name

    def _without_narrow(self, index: int, copy: Any, extras: Sequence[Any]) -> list[Any]:
        """Let a kept reduction skip the rounding of its sum."""
        use = next(u for place, u in self._twin.edges.nodes.items() if not place.scope and place.index == index)
        if not use.narrow_sum or index not in self._slot:
            return list(extras)
        wide = copy.output[0]
        target = wide.removesuffix("/wide")
        wire = self._twin.wire(target)
        target = f"{target}/raw" if wire is not None and wire.rounds and wire.low else target
        changed: list[Any] = []
        for node in extras:
            own = type(node)()
            own.CopyFrom(node)
            if target in own.output:
                own.output[list(own.output).index(target)] = f"{target}/narrow"
                changed.append(own)
                flag = self._flags[self._slot[index]]
                changed.append(
                    helper.make_node("Where", [flag, wide, f"{target}/narrow"], [target], name=f"{target}/choice")
                )
            else:
                changed.append(own)
        return changed

    def _output(self, name: str) -> str:
        wire = self._twin.wire(name)
        if wire is None or not wire.low or wire.writer is None or wire.writer.index not in self._slot:
            return name
        return self._switch(wire, (self._slot[wire.writer.index],))
