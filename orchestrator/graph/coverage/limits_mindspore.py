"""Known limits of the MindSpore Lite converter, all measured with the 2.0.0 wheel on an x86 CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from orchestrator.graph.coverage.judge import Question
from orchestrator.graph.coverage.nodes import Node
from orchestrator.graph.coverage.verdicts import Finding

Limit = Callable[[Node, Question], Iterator[Finding]]


def pool_dilations(node: Node, _: Question) -> Iterator[Finding]:
    """The converter refuses the attribute itself, all-ones included, which every torch export writes."""
    if "dilations" not in node.attributes:
        return
    if all(item == 1 for item in node.ints("dilations")):
        yield Finding(
            "blocked",
            "the converter refuses pooling with a dilations attribute, even of ones",
            "the rewrite strip_dilations drops it",
            "strip_dilations",
        )
    else:
        yield Finding(
            "blocked", f"the converter knows no pooling with dilations {node.ints('dilations')}", "pool without"
        )


def layer_normalization(_node: Node, _: Question) -> Iterator[Finding]:
    """Converted, but with an epsilon of its own: small inputs come out wrong (error 2.8 at epsilon 1e-3, scale 0.01)."""
    yield Finding(
        "blocked",
        "the converter takes LayerNormalization and loses its epsilon: small inputs come out wrong",
        "the rewrite decompose_layer_normalization writes it out (as opset 16 and older do)",
        "decompose_layer_normalization",
    )


def if_outer(node: Node, _: Question) -> Iterator[Finding]:
    """Branches cannot read what the graph around them computes: `outside_input_node should has data`."""
    if node.captures:
        names = ", ".join(sorted(node.captures)[:3])
        yield Finding(
            "blocked", f"If whose branches read tensors from outside ({names})", "compute both and choose with Where"
        )


def instance_normalization(node: Node, _: Question) -> Iterator[Finding]:
    """On rank 3 the size of gamma is compared with the wrong axis; torch writes GroupNorm this way."""
    if node.rank() == 3:
        yield Finding(
            "blocked", "InstanceNormalization of rank 3 (how torch writes GroupNorm) is refused", "write it out"
        )


def cast(node: Node, question: Question) -> Iterator[Finding]:
    """Integers to bool: converted, and refused when the CPU runtime builds it."""
    target = node.outputs[0].dtype if node.outputs and node.outputs[0] else ""
    if not node.folded and target == "bool" and node.value(0).dtype in {"int64", "int32"}:
        verdict = "unknown" if question.family else "blocked"
        yield Finding(
            verdict, f"Cast of {node.value(0).dtype} to bool: the CPU runtime refuses it", "compare with 0 instead"
        )


MINDSPORE_LIMITS: Final[Mapping[str, Limit]] = {
    "Cast": cast,
    "If": if_outer,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "AveragePool": pool_dilations,
    "MaxPool": pool_dilations,
}
"""Operator of `ai.onnx` -> what was measured of it."""
