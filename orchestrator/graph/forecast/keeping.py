"""The keep list: must first, then should, then a last look with the real twin on all samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from onnx import helper

from orchestrator.ascend.precision import Policy
from orchestrator.graph.forecast.batches import Batches
from orchestrator.graph.forecast.cost import Prices
from orchestrator.graph.forecast.mask import open_mask_session
from orchestrator.graph.forecast.moves import Moves
from orchestrator.graph.forecast.must import Unit, must_units, next_broken, sensitive_tensors
from orchestrator.graph.forecast.pieces import Pieces, readers, take_apart
from orchestrator.graph.forecast.predict import Model
from orchestrator.graph.forecast.ranges import TensorRange
from orchestrator.graph.forecast.result import KeepList, KeptNode, Point, worst_db
from orchestrator.graph.forecast.search import SEARCH_S, Candidate, Probe, Search
from orchestrator.graph.forecast.shadow import Damage, cumulative
from orchestrator.graph.forecast.workspace import Workspace
from orchestrator.graph.parity import OutputMetrics, compare
from orchestrator.graph.twin.recurrent import RECURRENT
from orchestrator.graph.verdict import Thresholds, judge

Array = np.ndarray[Any, Any]
_SEARCH_SAMPLES: Final = 4
_MOST_ROUNDS: Final = 12
_SHARE_OF_ROUND: Final = 0.6
"""Of the time that is left, what one round may use: samples that fail its answer need another."""
_WORTH_DB: Final = 0.5
"""What a list must gain to be worth naming although the thresholds are not met."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a search chose, and the nodes to keep for it: those of the candidates, and the movement between them."""

    chosen: Sequence[Candidate] = ()
    names: frozenset[str] = frozenset()


@dataclass(slots=True)
class Keeper:
    """All that the keep list is made from.

    Attributes:
        reference: fp32 outputs on all samples.
        ranges, damages, grown: Range view, local view, and cumulative view of the twin that keeps nothing.
        before: Metrics of that twin's outputs.
        say: Told what goes on.
    """

    space: Workspace
    policy: Policy
    batches: Batches
    reference: Mapping[str, Array]
    ranges: Mapping[str, TensorRange]
    damages: Mapping[str, Damage]
    grown: Mapping[str, Damage]
    before: Mapping[str, OutputMetrics]
    asked: Thresholds
    prices: Prices
    say: Callable[[str], None]
    search_s: float = SEARCH_S
    points: list[Point] = field(default_factory=list[Point])
    runs: int = 0
    _begin: int = 1

    def units(self, pieces: Pieces) -> list[Unit]:
        """Return all must-keep units: those that the views ask for, then those that still break the twin."""
        found = must_units(pieces, self.ranges, self.damages, sensitive_tensors(self.space))
        for _ in range(_MOST_ROUNDS):
            known = {one.tensor for one in found}
            keep = kept_names(found)
            twin, after = pieces, self.grown
            if keep:
                twin = take_apart(self.space, self.policy, keep=keep)
                after, _outputs = cumulative(self.space, self.batches, twin, self.ranges)
            fresh = [one for one in next_broken(twin, after, known) if set(one.kept) - set(keep) or one.stuck]
            if not fresh:
                break
            found += fresh
        return found

    def keep_list(self, pieces: Pieces) -> KeepList:
        """Find the list.

        Raises:
            GateError: The runtime fails.
        """
        began = time.monotonic()
        self.say("must-keep: values that the format cannot hold")
        units = self.units(pieces)
        must = kept_names(units)
        metrics = self.measure(must)
        self._point((), self.before)
        if must:
            self._point(must, metrics)
        found = _Found()
        if not self._passes(metrics):
            self.say("should-keep: searching for what the thresholds need")
            found = self._should(pieces, must, metrics)
        should = sorted(found.names - set(must), key=self._position)
        return KeepList(
            "auto",
            must=tuple(self.kept(name, "must", _reasons(name, units)) for name in must),
            should=tuple(self.kept(name, "should", _worths(name, found.chosen)) for name in should),
            units=tuple(units),
            cannot=tuple(one for one in units if one.stuck),
            points=tuple(self.points),
            runs=self.runs,
            seconds=time.monotonic() - began,
        )

    def measure(self, keep: Collection[str]) -> dict[str, OutputMetrics]:
        """Run the real twin with `keep` on all samples."""
        if not keep:
            return dict(self.before)
        return compare(self.reference, Model(self.space, self.batches, self.policy, keep)(self.batches.samples))

    def kept(self, name: str, level: Literal["must", "should"], reasons: tuple[str, ...]) -> KeptNode:
        """Return a line of the keep list for a node."""
        node = next((node for node in self.space.graph.node if node.name == name), None)
        if node is None:
            return KeptNode(name, "in a subgraph", level, reasons)
        inputs, outputs = (tuple(self._dtype(n) for n in names if n) for names in (node.input, node.output))
        alike = sum(other.op_type == node.op_type for other in self.space.graph.node)
        return KeptNode(name, node.op_type, level, reasons, inputs, outputs, alike)

    def _dtype(self, tensor: str) -> str:
        kind = self.space.types.get(tensor, 0)
        return str(helper.tensor_dtype_to_np_dtype(kind)) if kind else "unknown"

    def _position(self, name: str) -> int:
        return next((i for i, node in enumerate(self.space.graph.node) if node.name == name), 0)

    def _passes(self, metrics: Mapping[str, OutputMetrics]) -> bool:
        return judge(metrics, self._numbers_only(), saturating=self.policy.saturating).passed

    def _numbers_only(self) -> Thresholds:
        return Thresholds(self.asked.min_sqnr_db, self.asked.min_cosine, self.asked.min_agreement)

    def _point(self, keep: Collection[str], metrics: Mapping[str, OutputMetrics]) -> None:
        total = sum(self.prices.flops.values()) or 1.0
        share = sum(self.prices.flops.get(name, 0.0) for name in keep) / total
        self.points.append(Point(len(set(keep)), share, worst_db(metrics), self._passes(metrics)))

    def _should(self, pieces: Pieces, must: list[str], metrics: Mapping[str, OutputMetrics]) -> _Found:
        """Search on the worst samples, confirm on all; samples that then fail join the search."""
        candidates = self._candidates(pieces, set(must))
        if not candidates:
            return _Found()
        nodes = self.space.graph.node
        moves = Moves(pieces, lambda index: self._free(nodes[index]))
        rows = _worst_rows(metrics, self.batches.count)
        outputs = Model(self.space, self.batches, self.policy, must)(self.batches.samples)
        until = time.monotonic() + self.search_s
        order = _row_order(self.reference, outputs, self.batches.count)
        best = _Found()
        reached = worst_db(metrics) + _WORTH_DB
        for count in (_SEARCH_SAMPLES, 4 * _SEARCH_SAMPLES, self.batches.count):
            rows = sorted({*rows, *order[:count]})
            left = until - time.monotonic()
            round_s = time.monotonic() + left * _SHARE_OF_ROUND
            chosen, found = self._search(pieces, must, candidates, moves, rows, round_s)
            names = {name for one in chosen for name in one.nodes}
            here = _Found(chosen, frozenset(names | moves.between(names.union(must))))
            keep = {*must, *here.names}
            final = self.measure(keep)
            self._point(keep, final)
            if self._passes(final):
                return here
            if worst_db(final) > reached:
                best, reached = here, worst_db(final)
            if not found or len(rows) >= self.batches.count or time.monotonic() >= until:
                break
            rows += _worst_rows(final, self.batches.count)
        return best

    def _search(
        self,
        pieces: Pieces,
        must: list[str],
        candidates: Sequence[Candidate],
        moves: Moves,
        rows: list[int],
        until: float,
    ) -> tuple[list[Candidate], bool]:
        per_sample = all(value.shape[:1] == (self.batches.count,) for value in self.reference.values())
        part, picked = self.batches.chosen(rows) if per_sample else (self.batches, list(range(self.batches.count)))
        reference = {name: value[picked] if per_sample else value for name, value in self.reference.items()}
        all_names = {name for one in candidates for name in one.nodes}.union(must)
        names = sorted((all_names | moves.between(all_names)) - set(must), key=self._position)
        session = open_mask_session(self.space, pieces, must=must, candidates=names, batches=part, reference=reference)

        def probe(nodes: frozenset[str]) -> Probe:
            nodes |= moves.between(nodes.union(must))
            metrics = session.metrics(nodes)
            self._point({*must, *nodes}, metrics)
            return Probe(worst_db(metrics), self._passes(metrics))

        search = Search(probe, until)
        answer = search.find(candidates, begin=self._begin)
        self._begin, self.runs = search.grown, self.runs + session.runs
        return answer

    def _free(self, node: Any) -> bool:
        """Tell whether the search may switch a node: recurrent ones round inside, where no switch reaches."""
        return node.op_type not in RECURRENT and self.policy.can_keep(node.op_type, node.domain)

    def _candidates(self, pieces: Pieces, must: set[str]) -> list[Candidate]:
        nodes = list(self.space.graph.node)
        noise = {
            node.name: max((self.damages[name].noise for name in node.output if name in self.damages), default=0.0)
            for node in nodes
        }
        found: list[Candidate] = []
        for wire in pieces.edges.in_scope(""):
            if wire.writer is None or wire.kind != "node" or not wire.rounds or wire.name not in self.ranges:
                continue
            writer = nodes[wire.writer.index]
            read_by = [nodes[p.index] for p, r in readers(pieces.edges, wire) if not r.place.scope]
            free = [n for n in (writer, *read_by) if self._free(n)]
            names = frozenset(node.name for node in free)
            is_output = any(r.is_output and not r.place.scope for r in wire.readers)
            if writer.name not in names or names <= must or (len(names) < 2 and not is_output):
                continue
            damage = max(noise[name] for name in names)
            elements = math.prod(self.space.shapes[wire.name])
            price = sum(self.prices.flops.get(name, 0.0) for name in names - must) + 16.0 * elements
            found.append(Candidate(wire.name, names, damage, damage / price))
        return found


def kept_names(units: Sequence[Unit]) -> list[str]:
    """Return the nodes of the units that can be kept, in order."""
    return list(dict.fromkeys(name for one in units for name in one.kept))


def _worst_rows(metrics: Mapping[str, OutputMetrics], count: int) -> list[int]:
    return [m.worst_sample for m in metrics.values() if 0 <= m.worst_sample < count]


def _row_order(reference: Mapping[str, Array], found: Mapping[str, Array], count: int) -> list[int]:
    """Return the samples, the one with the most relative noise first."""
    worst = np.zeros(count)
    for name, value in reference.items():
        if value.dtype.kind == "f" and value.shape[:1] == (count,) and found[name].shape == value.shape:
            left, right = (np.nan_to_num(x.astype(np.float64).reshape(count, -1)) for x in (value, found[name]))
            signal = np.sum(left**2, axis=1) + 1e-300
            worst = np.maximum(worst, np.sum((left - right) ** 2, axis=1) / signal)
    return [int(row) for row in np.argsort(-worst)]


def _reasons(name: str, units: Sequence[Unit]) -> tuple[str, ...]:
    return tuple(f"{one.tensor} {one.text}" for one in units if name in one.kept)


def _worths(name: str, chosen: Sequence[Candidate]) -> tuple[str, ...]:
    worths = tuple(
        f"keeps {one.tensor} in fp32: {-10 * math.log10(max(one.damage, 1e-40)):.1f} dB of local damage"
        for one in chosen
        if name in one.nodes
    )
    return worths or ("moves data between nodes that are kept, so that it is not rounded on the way",)
