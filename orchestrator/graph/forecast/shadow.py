"""The local and the cumulative view: the fp32 graph and its twin in one run, compared tensor by tensor inside the graph.

Local: each node alone runs as the target would, on the fp32 graph's values: the damage that is its own. Cumulative: the
twin runs beside: the damage that the user will see. High cumulative with low local damage is inherited.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from orchestrator.graph.forecast.batches import Batches
from orchestrator.graph.forecast.instrument import PREFIX, Instrument, Taken, take
from orchestrator.graph.forecast.pieces import Pieces, holder, renamed
from orchestrator.graph.forecast.ranges import TensorRange
from orchestrator.graph.forecast.workspace import Workspace
from orchestrator.graph.parity import EXACT_DB
from orchestrator.graph.twin.edges import CONTROL
from orchestrator.graph.twin.rounding import LARGEST, round_nodes

Array = np.ndarray[Any, Any]

CHUNK_BYTES: Final = 1 << 30
"""Float tensors per graph of the local view; a bigger model is looked at in several."""

_TWIN: Final = f"{PREFIX}twin/"
_LOCAL: Final = f"{PREFIX}local/"
_ROUND: Final = f"{PREFIX}round/"


@dataclass(frozen=True, slots=True)
class Damage:
    """What rounding did to one tensor.

    Attributes:
        sqnr_db: Signal-to-noise ratio over all samples, within +-400; -400 where the damage is not finite.
        nonfinite: NaN or infinity where fp32 is finite.
        saturated: A value at the end of the format where fp32 is below it: infinity that the SoC hides.
    """

    tensor: str
    sqnr_db: float
    nonfinite: bool
    saturated: bool

    @property
    def broken(self) -> bool:
        """Whether no tolerance excuses it."""
        return self.nonfinite or self.saturated

    @property
    def noise(self) -> float:
        """Noise power over signal power."""
        return 10.0 ** (-self.sqnr_db / 10.0)


def cumulative(
    space: Workspace, batches: Batches, pieces: Pieces, ranges: Mapping[str, TensorRange]
) -> tuple[dict[str, Damage], dict[str, Array]]:
    """Run the twin beside the graph; return the damage of each computed tensor in order, and the twin's outputs.

    Raises:
        GateError: The runtime fails.
    """
    made = Instrument(space)
    names = _twin_names(space, pieces)
    own = {tensor.name: tensor.SerializeToString() for tensor in space.graph.initializer}
    for tensor in pieces.initializers:
        if own.get(tensor.name) == tensor.SerializeToString():
            names.pop(tensor.name, None)
            continue
        copy = type(tensor)()
        copy.CopyFrom(tensor)
        copy.name = names[tensor.name]
        made.initializers.append(copy)
    for node in pieces.head:
        made.nodes.append(_own_name(renamed(node, names), _TWIN))
    looked: dict[str, str] = {}
    copies = space.copies()
    for node, group in zip(space.graph.node, pieces.groups, strict=True):
        made.nodes.append(node)
        made.nodes += [_own_name(renamed(piece, names), _TWIN) for piece in group]
        for tensor in _comparable(space, node.output, ranges):
            source = copies.get(tensor, tensor)
            looked[tensor] = source if source in looked and _rounds_nothing(pieces, tensor) else tensor
            if looked[tensor] == tensor:
                _compare(made, tensor, names[tensor], ranges[tensor])
    outputs = [_as_output(entry, names) for entry in space.graph.output]
    taken = take(made, batches, outputs=outputs)
    values = {entry.name: taken.outputs[made_.name] for entry, made_ in zip(space.graph.output, outputs, strict=True)}
    found = {
        tensor: _damage(tensor, taken, ranges[tensor], pieces) for tensor, source in looked.items() if source == tensor
    }
    return {tensor: replace(found[source], tensor=tensor) for tensor, source in looked.items()}, values


def _rounds_nothing(pieces: Pieces, tensor: str) -> bool:
    """Tell whether a copy of a tensor has the very values of what it copies: nothing is rounded behind it."""
    wire = pieces.wire(tensor)
    return wire is not None and (wire.already or not wire.low)


def local(space: Workspace, batches: Batches, pieces: Pieces, ranges: Mapping[str, TensorRange]) -> dict[str, Damage]:
    """Run each node alone on rounded fp32 values; nodes that only move rounded data, or hold subgraphs, are left out.

    Raises:
        GateError: The runtime fails.
    """
    found: dict[str, Damage] = {}
    for chunk in _chunks(space, pieces):
        found.update(_local(space, batches, pieces, ranges, chunk))
    return found


def _chunks(space: Workspace, pieces: Pieces) -> Iterable[list[int]]:
    chunk: list[int] = []
    size_bytes = 0
    for index, node in enumerate(space.graph.node):
        wires = [wire for name in node.output if (wire := pieces.wire(name)) is not None]
        if node.op_type in CONTROL or node.op_type == "Constant" or not wires or all(wire.already for wire in wires):
            continue
        chunk.append(index)
        size_bytes += sum(4 * math.prod(space.shapes.get(name, ())) for name in (*node.input, *node.output))
        if size_bytes > CHUNK_BYTES:
            yield chunk
            chunk, size_bytes = [], 0
    if chunk:
        yield chunk


def _local(
    space: Workspace, batches: Batches, pieces: Pieces, ranges: Mapping[str, TensorRange], chunk: list[int]
) -> dict[str, Damage]:
    made, asked = Instrument(space), frozenset(chunk)
    weights = _twin_weights(space, pieces, made)
    rounded: set[str] = set()
    looked: list[str] = []
    needed = _ancestors(space, chunk)
    for index, node in enumerate(space.graph.node):
        if index not in needed:
            continue
        made.nodes.append(node)
        if index not in asked:
            continue
        names = dict(weights)
        for wire, name in _rounded_inputs(space, pieces, index):
            if wire not in rounded:
                made.nodes += round_nodes(
                    wire,
                    f"{_ROUND}{wire}",
                    pieces.edges.low,
                    saturating=pieces.edges.saturating,
                    prefix=f"{_ROUND}{wire}",
                )
                rounded.add(wire)
            names[name] = f"{_ROUND}{wire}"
        names |= _raw_inputs(pieces, index)
        for piece in pieces.groups[index]:
            names |= {output: f"{_LOCAL}{output}" for output in piece.output if output}
        made.nodes += [_own_name(renamed(piece, names), _LOCAL) for piece in pieces.groups[index]]
        for tensor in _comparable(space, node.output, ranges):
            _compare(made, tensor, f"{_LOCAL}{tensor}", ranges[tensor])
            looked.append(tensor)
    taken = take(made, batches)
    return {tensor: _damage(tensor, taken, ranges[tensor], pieces) for tensor in looked}


def _rounded_inputs(space: Workspace, pieces: Pieces, index: int) -> Iterable[tuple[str, str]]:
    """Yield the wires whose rounded value the node at `index` reads, and what the twin calls that value."""
    node = space.graph.node[index]
    for position, name in enumerate(node.input):
        wire = pieces.wire(name)
        if wire is None or wire.kind == "weight":
            continue
        reader = next(r for r in wire.readers if (r.place.scope, r.place.index, r.index) == ("", index, position))
        if wire.already or wire.sees_rounded(reader):
            yield name, pieces.rounded[name] if wire.sees_rounded(reader) else name


def _raw_inputs(pieces: Pieces, index: int) -> dict[str, str]:
    """Map what the twin calls raw values, `<tensor>/raw`, back to the fp32 graph's tensor."""
    group = pieces.groups[index]
    own = {name for node in group for name in node.output}
    return {
        name: name.removesuffix("/raw")
        for node in group
        for name in captured(node)
        if name.endswith("/raw") and name not in own and pieces.wire(name.removesuffix("/raw")) is not None
    }


def _twin_weights(space: Workspace, pieces: Pieces, made: Instrument) -> dict[str, str]:
    """Add the twin's weights that differ from the graph's own; return their new names."""
    own = {tensor.name: tensor.SerializeToString() for tensor in space.graph.initializer}
    names: dict[str, str] = {}
    for tensor in pieces.initializers:
        if own.get(tensor.name) != tensor.SerializeToString():
            copy = type(tensor)()
            copy.CopyFrom(tensor)
            copy.name = names[tensor.name] = f"{_LOCAL}{tensor.name}"
            made.initializers.append(copy)
    for group in pieces.groups:  # constants that are rounded are nodes of their own
        for node in group:
            if node.op_type == "Constant" and group[0].op_type == "Constant":
                names[node.output[0]] = f"{_LOCAL}{node.output[0]}"
                made.nodes.append(_own_name(renamed(node, names), _LOCAL))
    return names


def _ancestors(space: Workspace, chunk: list[int]) -> set[int]:
    nodes = list(space.graph.node)
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    todo, found = list(chunk), set[int]()
    while todo:
        index = todo.pop()
        if index in found:
            continue
        found.add(index)
        todo += [maker[name] for name in captured(nodes[index]) if name in maker]
    return found


def captured(node: Any) -> Iterable[str]:
    """Yield the names that a node reads, those that its subgraphs read of the graph around it included."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from captured(inner)
            yield from (value.name for value in attribute.g.output)


def _twin_names(space: Workspace, pieces: Pieces) -> dict[str, str]:
    given = {entry.name for entry in space.graph.input}
    made = [name for node in pieces.nodes for name in node.output if name]
    weights = [tensor.name for tensor in pieces.initializers]
    return {name: f"{_TWIN}{name}" for name in (*made, *weights) if name not in given}


def _own_name(node: Any, prefix: str) -> Any:
    node.name = f"{prefix}{node.name}" if node.name else ""
    return node


def _as_output(entry: Any, names: Mapping[str, str]) -> Any:
    copy = type(entry)()
    copy.CopyFrom(entry)
    copy.name = names.get(entry.name, entry.name)
    return copy


def _comparable(space: Workspace, outputs: Iterable[str], ranges: Mapping[str, TensorRange]) -> list[str]:
    return [name for name in outputs if name in ranges and name in space.shapes]


def _compare(made: Instrument, tensor: str, twin: str, seen: TensorRange) -> None:
    scale = 1.0 / seen.absmax if math.isfinite(seen.absmax) and seen.absmax > 0 else 1.0
    flat = made.flat(twin)
    difference = made.emit("Mul", made.emit("Sub", made.flat(tensor), flat), made.constant(np.float32(scale)))
    made.scalar(f"noise {tensor}", made.reduce("ReduceSumSquare", difference))
    made.scalar(f"top {tensor}", made.reduce("ReduceMax", flat))
    made.scalar(f"bottom {tensor}", made.reduce("ReduceMin", flat))


def _damage(tensor: str, taken: Taken, seen: TensorRange, pieces: Pieces) -> Damage:
    scale = 1.0 / seen.absmax if math.isfinite(seen.absmax) and seen.absmax > 0 else 1.0
    noise = float(np.sum(taken.scalars[f"noise {tensor}"]))
    reach = max(float(np.max(taken.scalars[f"top {tensor}"])), -float(np.min(taken.scalars[f"bottom {tensor}"])))
    largest = LARGEST[pieces.edges.low]
    finite = math.isfinite(seen.absmax) and math.isfinite(seen.rms)
    nonfinite = finite and not math.isfinite(noise)
    ends = (
        reach >= largest > seen.absmax or reach == largest < seen.absmax
    )  # beyond the format it is not rounded at all
    saturated = finite and pieces.edges.saturating and ends
    signal = (seen.rms * scale) ** 2 * seen.elements
    if not math.isfinite(noise) or not math.isfinite(signal):
        value = -EXACT_DB
    elif noise == 0.0:
        value = EXACT_DB
    else:
        value = 10.0 * math.log10(signal / noise) if signal > 0 else -EXACT_DB
    return Damage(tensor, max(-EXACT_DB, min(EXACT_DB, value)), nonfinite, saturated)


def inside(pieces: Pieces) -> dict[str, int]:
    """Return, per node that holds subgraphs, how many float-computing nodes lie inside: emulated, not shown one by one."""
    found: dict[str, int] = {}
    for place, use in pieces.edges.nodes.items():
        if place.scope:
            name = pieces.edges.nodes[holder(pieces.edges, place)].name
            found[name] = found.get(name, 0) + (use.op_type not in CONTROL)
    return found
