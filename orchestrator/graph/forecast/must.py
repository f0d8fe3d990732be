"""Must-keep: values that the low format cannot hold, whatever a calibration set says about the rest. Never minimised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from orchestrator.graph.forecast.pieces import Pieces
from orchestrator.graph.forecast.ranges import FLUSHED, TensorRange
from orchestrator.graph.forecast.shadow import Damage
from orchestrator.graph.forecast.workspace import Workspace
from orchestrator.graph.twin.rounding import LARGEST
from orchestrator.graph.twin.wires import Edges, Place, Wire

MARGIN: Final = 0.5
"""Share of the format's end above which a tensor must stay in fp32: samples show too little of a distribution's tails."""

Cause = Literal["overflow", "near_overflow", "nonfinite", "saturation", "zero_into_division"]


@dataclass(frozen=True, slots=True)
class Unit:
    """Nodes that must be kept together for one tensor to stay in fp32.

    Attributes:
        nodes: Its writer, its readers, and movement in between.
        stuck: Those of them that have no fp32 kernel on this SoC.
        certain: Whether the samples showed the failure; else it is near.
    """

    tensor: str
    cause: Cause
    text: str
    nodes: tuple[str, ...]
    stuck: tuple[str, ...]
    certain: bool

    @property
    def kept(self) -> tuple[str, ...]:
        """The nodes that can be kept."""
        return tuple(name for name in self.nodes if name not in self.stuck)

    def to_json(self) -> dict[str, object]:
        """Return all fields."""
        return {
            "tensor": self.tensor, "cause": self.cause, "reason": self.text, "nodes": list(self.nodes),
            "stuck": list(self.stuck), "certain": self.certain,
        }  # fmt: skip


def sensitive_tensors(space: Workspace) -> dict[str, list[str]]:
    """Return the tensors where a zero that fp32 lacks divides or is taken the logarithm of -> the nodes that do it.

    Through Sqrt and movement too: Sqrt(0) in a Div is as bad as 0.
    """
    makers = {name: node for node in space.graph.node for name in node.output if name}
    found: dict[str, list[str]] = {}
    for node in space.graph.node:
        for name in _divided_by(space, node):
            chain: str | None = name
            while chain is not None:
                found.setdefault(chain, []).append(node.name)
                maker = makers.get(chain)
                passes = maker is not None and maker.op_type in {
                    "Sqrt", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Expand", "Identity", "Abs", "Flatten",
                }  # fmt: skip
                chain = maker.input[0] if maker is not None and passes else None
    return found


def _divided_by(space: Workspace, node: Any) -> list[str]:
    if node.op_type == "Div" and space.is_float(node.input[1]):
        return [node.input[1]]
    if node.op_type in {"Log", "Reciprocal"} and space.is_float(node.input[0]):
        return [node.input[0]]
    if node.op_type == "Pow" and node.input[1] in space.weights and space.is_float(node.input[0]):
        return [node.input[0]] if bool(np.any(np.asarray(space.weight(node.input[1])) < 0)) else []
    return []


def must_units(
    pieces: Pieces,
    ranges: Mapping[str, TensorRange],
    damages: Mapping[str, Damage],
    sensitive: Mapping[str, list[str]],
) -> list[Unit]:
    """Return the units that range and local view ask for, in topological order.

    Args:
        pieces: The graph's twin without any keep list.
        ranges: Of every tensor.
        damages: The local view.
        sensitive: Of `sensitive_tensors`.
    """
    largest, found, done = LARGEST[pieces.edges.low], list[Unit](), set[str]()
    for wire in pieces.edges.in_scope(""):
        seen = ranges.get(wire.name)
        if seen is None or not _low_somewhere(wire):
            continue
        damage = None if _explained(pieces, wire, done) else damages.get(wire.name)
        why = _why(wire, seen, damage, largest, sensitive, fp16=pieces.edges.low == "fp16")
        if why is not None:
            done.add(wire.name)
            found.append(unit(pieces, wire, *why))
    return found


def _explained(pieces: Pieces, wire: Wire, done: set[str]) -> bool:
    """Tell whether what the writer reads is kept already: its own damage was that of its inputs' rounding."""
    return any(
        reader.place == wire.writer for name in done if (w := pieces.wire(name)) is not None for reader in w.readers
    )


def _low_somewhere(wire: Wire) -> bool:
    """Tell whether the low format holds the tensor anywhere: written so, read so, or moved so."""
    return wire.low or wire.already or any(reader.low for reader in wire.readers)


def _why(
    wire: Wire,
    seen: TensorRange,
    damage: Damage | None,
    largest: float,
    sensitive: Mapping[str, list[str]],
    *,
    fp16: bool,
) -> tuple[Cause, str, bool] | None:
    if seen.absmax > largest and math.isfinite(seen.absmax):
        return "overflow", f"reaches {seen.absmax:.6g}, the format ends at {largest:.6g}", True
    if seen.absmax > MARGIN * largest and math.isfinite(seen.absmax):
        return "near_overflow", f"reaches {seen.absmax:.6g}, more than {MARGIN:.0%} of {largest:.6g}", False
    if fp16 and wire.name in sensitive and seen.flushed_share > 0:
        users = ", ".join(dict.fromkeys(sensitive[wire.name]))
        share = f"{seen.flushed_share:.2%} of the non-zero values are at or below {FLUSHED:.3g} and become 0"
        return "zero_into_division", f"{share}, which reaches {users}", True
    if damage is not None and damage.broken:
        cause: Cause = "nonfinite" if damage.nonfinite else "saturation"
        return cause, "its node alone, on rounded inputs, gives NaN or infinity where fp32 is finite", True
    return None


def unit(pieces: Pieces, wire: Wire, cause: Cause, text: str, certain: bool) -> Unit:
    """Return what must be kept for `wire`."""
    edges = pieces.edges
    places = [*_writers(edges, wire), *(reader.place for reader in wire.readers if not reader.is_output)]
    if cause in {"nonfinite", "saturation", "zero_into_division"}:
        places += _upstream(edges, wire, through_all=cause != "zero_into_division")
    names: dict[str, bool] = {}
    for place in sorted(set(places), key=lambda place: (place.scope != "", place.scope, place.index)):
        use = edges.nodes[place]
        if use.op_type != "Constant":
            names[use.name] = pieces.policy.can_keep(use.op_type) and bool(use.name)
    stuck = tuple(name for name, can in names.items() if not can)
    return Unit(wire.name, cause, text, tuple(names), stuck, certain)


def _writers(edges: Edges, wire: Wire) -> Iterator[Place]:
    """Yield the node that writes a wire; of a result of If, Loop or Scan, all nodes of its bodies."""
    if wire.writer is None:
        return
    if wire.kind != "carried":
        yield wire.writer
        return
    for place in edges.nodes:
        outer = place
        while outer.scope:
            outer = edges.parents[outer.scope]
            if outer == wire.writer:
                yield place
                break


def _upstream(edges: Edges, wire: Wire, *, through_all: bool) -> Iterator[Place]:
    """Yield the writers of what the writer of `wire` reads: its damage may be that of its inputs' rounding."""
    if wire.writer is None or wire.kind == "carried":
        return
    writer = edges.nodes[wire.writer]
    if not through_all and not writer.movement and writer.op_type != "Sqrt":
        return
    for other in edges.in_scope(wire.scope):
        if any(reader.place == wire.writer for reader in other.readers):
            yield from _writers(edges, other)


def next_broken(pieces: Pieces, damages: Mapping[str, Damage], known: Iterable[str]) -> list[Unit]:
    """Return units for tensors that break first in the twin: everything that they are computed from is sound."""
    done, broken = set(known), {name for name, damage in damages.items() if damage.broken}
    found: list[Unit] = []
    for wire in pieces.edges.in_scope(""):
        if wire.name not in broken or wire.name in done or wire.writer is None:
            continue
        sources = [w for w in pieces.edges.in_scope("") if any(r.place == wire.writer for r in w.readers)]
        if not any(source.name in broken for source in sources):
            cause: Cause = "nonfinite" if damages[wire.name].nonfinite else "saturation"
            text = "in the twin it is the first that is NaN, infinite or at the end of the format where fp32 is not"
            found.append(unit(pieces, wire, cause, text, True))
    return found
