"""What the checks share: the question that is asked, and names of rewrites."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.ascend.installed import ParserKey
from orchestrator.ascend.kernels import KernelTable
from orchestrator.graph.coverage.nodes import Node


@dataclass(frozen=True, slots=True)
class Question:
    """What a graph is judged against.

    Attributes:
        family: SoC family in lower case; empty when no SoC was asked about.
        precision: Precision mode of the toolchain, in ATC's words.
        kernels: Table that answers for this family.
        parsers: Keys of an installed CANN's parsers, None to use the shipped table.
    """

    toolchain: str
    family: str
    precision: str
    kernels: KernelTable
    parsers: frozenset[ParserKey] | None

    @property
    def strict(self) -> bool:
        """Whether every tensor keeps its dtype, so that a kernel must take just that."""
        return self.precision in {"origin", "fp32"}

    @property
    def through_ge(self) -> bool:
        """Whether the graph is compiled by CANN's graph engine for a SoC."""
        return bool(self.family)


def rewrite_for(node: Node, question: Question, *, opset_matters: bool = False) -> str | None:
    """Return the name of the rewrite that removes such nodes, None where there is none.

    Args:
        node: The node that is in the way.
        question: What it is judged against.
        opset_matters: Whether another opset of the model would mend it; otherwise `lower_opset` is no answer.
    """
    from orchestrator.graph import rewrites

    found = rewrites.rewrite_for(node.op_type, node.domain, node.opset, question.toolchain)
    return None if found == "lower_opset" and not opset_matters else found


def advice(rewrite: str | None, otherwise: str) -> str:
    """Return the fix: the rewrite where there is one, else what a person can do."""
    return f"the rewrite {rewrite} replaces it" if rewrite else otherwise
