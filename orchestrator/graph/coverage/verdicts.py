"""What coverage says: per node and of the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

Verdict = Literal["ok", "slow", "unknown", "blocked"]

_ORDER: Final[tuple[Verdict, ...]] = ("ok", "slow", "unknown", "blocked")


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst; `ok` of none."""
    return _ORDER[max((_ORDER.index(verdict) for verdict in verdicts), default=0)]


def best(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the best; `unknown` of none."""
    return _ORDER[min((_ORDER.index(verdict) for verdict in verdicts), default=2)]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not ok about a node (or a remark, when `ok`).

    Attributes:
        rewrite: Name of the rewrite that removes the cause, where one does.
    """

    verdict: Verdict
    reason: str
    fix: str = ""
    rewrite: str | None = None


@dataclass(frozen=True, slots=True)
class NodeVerdict:
    """One node.

    Attributes:
        path: Where it is: empty in the main graph, else `node/attribute` from the outside in.
        source: `file:line` of the user's code where the exporter kept it.
        rewrite: Name of the rewrite that removes the worst of the reasons.
    """

    node: str
    op_type: str
    domain: str
    path: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    fix: str = ""
    source: str = ""
    rewrite: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return {**asdict(self), "reasons": list(self.reasons)}


@dataclass(frozen=True, slots=True)
class Coverage:
    """All nodes of a graph against one toolchain and SoC.

    Attributes:
        soc: None when no SoC was asked about: then only the toolchain's own limits are judged.
        tables: Which tables answered, in one line: the shipped ones or those of an installed CANN.
        splits: Parts that the graph would fall into (CANN provider); 1 when it stays whole.
        notes: What the reader must know besides.
    """

    soc: str | None
    toolchain: str
    toolchain_version: str
    tables: str
    precision: str
    opset: int
    nodes: tuple[NodeVerdict, ...]
    splits: int = 1
    notes: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> Verdict:
        """The worst of all nodes."""
        return worst(node.verdict for node in self.nodes)

    @property
    def counts(self) -> dict[Verdict, int]:
        """Number of nodes per verdict; all four are there."""
        found = Counter(node.verdict for node in self.nodes)
        return {verdict: found[verdict] for verdict in _ORDER}

    def offending(self, *verdicts: Verdict) -> tuple[NodeVerdict, ...]:
        """Return the nodes with these verdicts (without any: all that are not ok), worst first, in graph order."""
        wanted = verdicts or ("slow", "unknown", "blocked")
        found = [node for node in self.nodes if node.verdict in wanted]
        return tuple(sorted(found, key=lambda node: -_ORDER.index(node.verdict)))

    def to_json(self) -> dict[str, Any]:
        """Return the whole as one object; `offending` names every node that is not ok, `operators` sums up the rest."""
        return {
            "verdict": self.verdict,
            "soc": self.soc,
            "toolchain": self.toolchain,
            "toolchain_version": self.toolchain_version,
            "tables": self.tables,
            "precision": self.precision,
            "opset": self.opset,
            "counts": self.counts,
            "splits": self.splits,
            "notes": list(self.notes),
            "offending": [node.to_json() for node in self.offending()],
            "operators": _by_operator(self.nodes),
        }


def _by_operator(nodes: Sequence[NodeVerdict]) -> dict[str, dict[str, int]]:
    table: dict[str, Counter[str]] = {}
    for node in nodes:
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        table.setdefault(name, Counter())[node.verdict] += 1
    return {name: dict(table[name]) for name in sorted(table)}
