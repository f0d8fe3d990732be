"""Data movement between kept nodes: in fp32 it computes nothing more, in the low format it rounds what they exchange."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from orchestrator.graph.forecast.pieces import Pieces
from orchestrator.graph.twin.wires import Place


class Moves:
    """Knows which nodes of the main graph only move data, and between which others they lie.

    Args:
        pieces: The graph's twin.
        free: Whether the node of that index may be kept.
    """

    def __init__(self, pieces: Pieces, free: Callable[[int], bool]) -> None:
        edges = pieces.edges
        self._names = {place.index: use.name for place, use in edges.nodes.items() if not place.scope}
        self._moving = {
            index
            for index in self._names
            if edges.nodes[Place("", index)].movement and Place("", index) not in edges.parents.values() and free(index)
        }
        self._after: dict[int, set[int]] = {}
        self._before: dict[int, set[int]] = {}
        for wire in edges.in_scope(""):
            if wire.writer is None or wire.kind == "weight":
                continue
            for reader in wire.readers:
                if not reader.place.scope and not reader.is_output:
                    self._after.setdefault(wire.writer.index, set()).add(reader.place.index)
                    self._before.setdefault(reader.place.index, set()).add(wire.writer.index)

    def between(self, kept: Collection[str]) -> frozenset[str]:
        """Return the movement on the ways from one kept node to another that meet nothing but movement."""
        names = set(kept)
        begin = {index for index, name in self._names.items() if name in names}
        joined = self._reach(begin, self._after) & self._reach(begin, self._before)
        return frozenset(self._names[index] for index in joined)

    def _reach(self, begin: set[int], ways: Mapping[int, set[int]]) -> set[int]:
        found: set[int] = set()
        waiting = list(begin)
        while waiting:
            for index in ways.get(waiting.pop(), ()):
                if index in self._moving and index not in begin and index not in found:
                    found.add(index)
                    waiting.append(index)
        return found
