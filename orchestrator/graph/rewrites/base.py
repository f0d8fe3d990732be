"""What a rewrite is, what it is told, and what it says it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import onnx.defs
import onnx_ir as ir

from orchestrator.ascend.operators import atc_operator, cann_provider_takes, mindspore_lite_parses
from orchestrator.core.errors import GateError

Equivalence = Literal["exact", "tolerance", "approximate"]

TOOLCHAINS: Final = frozenset({"atc", "mindspore-lite", "cann-ep"})
"""Those that compile for an Ascend SoC; `onnx` and `torch` read the graph as it is."""

_WRONG: Final = frozenset({("mindspore-lite", "LayerNormalization")})
"""Parsed, but not computed as ONNX says: quirk mindspore-lite-layernorm-epsilon."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a rewrite is told.

    Attributes:
        toolchain: Key of the toolchain that will read the graph.
        opset: The opset that the graph will have in the end.
        soc: The SoC, for notes.
        shapes: Dimension name -> sizes it will have; one size is a fixed dimension, several are gears.
        forced: Whether the recipe switched this rewrite on by name: then it does all it can, needed or not.
    """

    toolchain: str
    opset: int
    soc: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    forced: bool = False

    def replaces(self, op_type: str) -> bool:
        """Whether a node of `ai.onnx` has to go: asked for, unknown at the opset, or lacking in the toolchain."""
        return self.forced or lacking(op_type, self.opset, self.toolchain)


@dataclass(slots=True)
class Changes:
    """What a rewrite did; false when nothing.

    Attributes:
        nodes: Names of the nodes (or inputs) that it touched.
        notes: For people.
        stuck: Nodes that it is meant for and could not replace, and why: for want of a type, perhaps, which inference may
            find once other nodes are gone.
    """

    nodes: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    stuck: list[str] = field(default_factory=list[str])

    def __bool__(self) -> bool:
        return bool(self.nodes)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One named pass.

    Attributes:
        equivalence: `exact`: the same arithmetic; `tolerance`: the same mathematics, rounded in another order;
            `approximate`: other mathematics, never on unless asked.
        about: One sentence for people.
        default: Whether it runs unless switched off, on its toolchains.
        toolchains: Those it is for; None is all.
        apply: Changes the model in place.
        removes: Operators of `ai.onnx` that are gone afterwards.
        quirks: Names in `ascend/quirks.py` of what it works around.
    """

    name: str
    equivalence: Equivalence
    about: str
    default: bool
    toolchains: frozenset[str] | None
    apply: Callable[[ir.Model, Context], Changes]
    removes: frozenset[str] = frozenset()
    quirks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """A node that cannot be rewritten, and why."""

    node: str
    op_type: str
    reason: str
    source: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the fields, JSON-ready."""
        return {"node": self.node, "op_type": self.op_type, "reason": self.reason, "source": self.source}


class CannotRewrite(Exception):
    """Raised inside a pass for one node; the pass collects these into one `GateError`."""


def lacking(op_type: str, opset: int, toolchain: str) -> bool:
    """Whether the toolchain cannot read such a node of `ai.onnx` as it stands, or computes something else."""
    if schema(op_type, opset) is None or (toolchain, op_type) in _WRONG:
        return True
    if toolchain == "atc":
        found = atc_operator(op_type)
        return found is None or opset not in found.opsets
    if toolchain == "mindspore-lite":
        return not mindspore_lite_parses(op_type)
    return toolchain == "cann-ep" and not cann_provider_takes(op_type)


def schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    """Return the operator's schema at an opset of `ai.onnx`, or None where it does not exist yet or any more."""
    try:
        found = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    return None if found.deprecated else found


def refused(what: str, problems: list[Problem], hint: str) -> GateError:
    """Return the error that names the nodes which stand in the way."""
    shown = "; ".join(f"{p.node} ({p.op_type}): {p.reason}" for p in problems[:5])
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return GateError(
        f"{what}: {shown}{more}",
        hint=hint,
        place=problems[0].source,
        details={"nodes": [problem.to_json() for problem in problems]},
    )
