"""What a rewrite is, what it is told, and what it says it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import onnx.defs
import onnx_ir as ir

from orchestrator.core.errors import GateError

Equivalence = Literal["exact", "tolerance", "approximate"]

TOOLCHAINS: Final = frozenset({"atc", "mindspore-lite", "cann-ep"})
"""Those that compile for an Ascend SoC; `onnx` and `torch` read the graph as it is."""

_LACKS: Final[Mapping[str, frozenset[str]]] = {
    "atc": frozenset({"GroupNormalization", "CenterCropPad", "Gelu", "RMSNormalization", "Swish"}),
    "cann-ep": frozenset(
        {"GroupNormalization", "CenterCropPad", "Gelu", "RMSNormalization", "Swish",
         "LayerNormalization", "Mish", "CastLike", "Einsum", "Trilu"}
    ),
    "mindspore-lite": frozenset(
        {"GroupNormalization", "CenterCropPad", "Gelu", "RMSNormalization", "Swish",
         "LayerNormalization", "Mish", "CastLike", "HardSwish"}
    ),
}  # fmt: skip
"""Operators that we know how to replace and that the toolchain lacks or gets wrong, whatever the opset."""

_LACKS_FROM: Final[Mapping[tuple[str, str], int]] = {("atc", "ReduceL1"): 18, ("atc", "ReduceL2"): 18}
"""Operators whose parser ends before the toolchain's last opset."""


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
    """What a rewrite did: the names of the nodes (or inputs) it touched, and notes for people. False when nothing."""

    nodes: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])

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
    """

    name: str
    equivalence: Equivalence
    about: str
    default: bool
    toolchains: frozenset[str] | None
    apply: Callable[[ir.Model, Context], Changes]
    removes: frozenset[str] = frozenset()


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
    """Whether the toolchain cannot read such a node of `ai.onnx` as it stands."""
    if op_type in _LACKS.get(toolchain, frozenset()) or opset >= _LACKS_FROM.get((toolchain, op_type), 10**6):
        return True
    return schema(op_type, opset) is None


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
