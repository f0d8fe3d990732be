"""What the analysis of a graph says: its float tensors (wires), who writes and reads them, and its nodes under the policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.ascend.precision import Low, Rounding


@dataclass(frozen=True, slots=True)
class Place:
    """A node's place: the path of its graph (empty for the main one) and its index there."""

    scope: str
    index: int


@dataclass(frozen=True, slots=True)
class NodeUse:
    """A node under the policy.

    Attributes:
        place: Where it is.
        name: Its name; may be empty or shared in a graph that was not made by us.
        op_type: Its operator.
        rounding: What happens to its float tensors, the grey list resolved.
        kept: Whether the caller keeps it in fp32.
        movement: Whether it only moves or selects.
        narrow_sum: Whether a sum inside it is held in the low format.
    """

    place: Place
    name: str
    op_type: str
    rounding: Rounding
    kept: bool
    movement: bool
    narrow_sum: bool


@dataclass(frozen=True, slots=True)
class Reader:
    """One use of a wire: input `index` of the node at `place`, or a graph's output (`index` is then its position).

    `place` of an output is that of its graph, with node index -1. `low`: it reads in the low format.
    """

    place: Place
    index: int
    low: bool

    @property
    def is_output(self) -> bool:
        """Whether it is an output of its graph."""
        return self.place.index < 0


@dataclass(slots=True)
class Wire:
    """One float tensor.

    Attributes:
        scope: Path of the graph that defines it.
        name: Its name there.
        kind: `node` (written by an ordinary node), `weight` (initializer or Constant), `input` (of the main graph) or
            `carried` (formal input of a subgraph, or result of If, Loop or Scan).
        writer: Place of the node that writes it; None for inputs and initializers.
        low: Whether its writer writes in the low format.
        already: Whether its value is in the low format without any rounding.
        in_low: Whether it was computed in the low format, which grey operators follow; None for inputs and weights.
        readers: All its uses, those in subgraphs too.
    """

    scope: str
    name: str
    kind: Literal["node", "weight", "input", "carried"]
    writer: Place | None = None
    low: bool = False
    already: bool = False
    in_low: bool | None = None
    readers: list[Reader] = field(default_factory=list[Reader])

    def sees_rounded(self, reader: Reader) -> bool:
        """Tell whether a reader needs the rounded copy rather than the value as it was written."""
        return not self.already and (self.low or reader.low)

    @property
    def rounds(self) -> bool:
        """Whether a rounded copy is needed at all."""
        return any(self.sees_rounded(reader) for reader in self.readers)

    @property
    def stays_raw(self) -> bool:
        """Whether somebody reads the value as it was written."""
        return any(not self.sees_rounded(reader) for reader in self.readers)


@dataclass(frozen=True, slots=True)
class Edges:
    """All float tensors and nodes of a graph under a policy.

    Attributes:
        low: The low format.
        saturating: Whether rounding turns infinity into the largest finite value and NaN into zero.
        wires: By (path of graph, name), in the order of definition.
        nodes: By place, in the order of execution.
        parents: Path of each subgraph -> the node that holds it.
        unrounded: Tensors that are left alone though the target may round them, each with the reason.
    """

    low: Low
    saturating: bool
    wires: Mapping[tuple[str, str], Wire]
    nodes: Mapping[Place, NodeUse]
    parents: Mapping[str, Place]
    unrounded: Mapping[str, str]

    def first_use(self, wire: Wire) -> int:
        """Return the index, in the graph that defines the wire, of the first node that reads it or holds a reader."""
        found: list[int] = []
        for reader in wire.readers:
            place = reader.place
            while place.scope != wire.scope:
                place = self.parents[place.scope]
            if place.index >= 0:
                found.append(place.index)
        return min(found, default=0)

    def in_scope(self, scope: str) -> Iterator[Wire]:
        """Yield the wires that a graph defines."""
        return (wire for wire in self.wires.values() if wire.scope == scope)
