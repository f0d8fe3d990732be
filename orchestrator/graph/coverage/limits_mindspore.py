"""Known limits of the MindSpore Lite converter, all measured with the 2.0.0 wheel on an x86 CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from orchestrator.ascend.quirks import JOINS
from orchestrator.graph.coverage.judge import Question
from orchestrator.graph.coverage.nodes import Node
from orchestrator.graph.coverage.verdicts import Finding, Verdict

_IMAGE: Final = 4

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


def control_flow(node: Node, _: Question) -> Iterator[Finding]:
    """Parsed, and then no MindIR comes out: If fails with branches that read from outside and with those that do not,
    Loop when its condition is written, and one Loop never ended.
    """
    yield Finding(
        "blocked",
        f"the converter parses {node.op_type} and then fails to write it",
        "compute both branches and choose with Where"
        if node.op_type == "If"
        else "unroll it in the model, or use ATC's If",
    )


def conv_strides(node: Node, question: Question) -> Iterator[Finding]:
    """Converted without `strides` (ONNX's default is 1), and refused when the CPU runtime builds it."""
    if "strides" not in node.attributes:
        yield Finding(
            _runtime(question),
            "Conv without the attribute strides is converted, and the runtime refuses it",
            "the rewrite write_out_defaults writes them out",
            "write_out_defaults",
        )


def cast(node: Node, _: Question) -> Iterator[Finding]:
    """Casts to bool keep the number: 2 becomes 2, not 1. A cast of a float to integers is left out where another follows."""
    target = node.outputs[0].dtype if node.outputs and node.outputs[0] else ""
    source = node.value(0).dtype
    if node.folded:
        return
    if target == "bool" and source not in {"bool", ""}:
        yield Finding(
            "unknown",
            f"Cast of {source} to bool keeps the number: right for 0 and 1 alone",
            "compare with 0 instead",
        )
    elif target.startswith(("int", "uint")) and source.startswith("float"):
        yield Finding(
            "unknown",
            f"Cast of {source} to {target} is left out where a Cast to float follows: digits behind the point stay",
            "use Floor",
        )


def instance_normalization(node: Node, question: Question) -> Iterator[Finding]:
    """On rank 3 the runtime compares the size of gamma with the wrong axis; torch writes GroupNorm this way."""
    if node.rank() == 3:
        yield Finding(
            _runtime(question),
            "InstanceNormalization of rank 3 (how torch writes GroupNorm): the runtime refuses it",
            "the rewrite decompose_instance_normalization writes it out",
            "decompose_instance_normalization",
        )


def joining_inputs(node: Node, _: Question) -> Iterator[Finding]:
    """Refused where the computed operand comes from a convolution through other nodes and the result goes to another."""
    images = [value for value in node.inputs if value is not None and len(value.shape or ()) == _IMAGE]
    fixed = [value for value in images if value.given and all(isinstance(dim, int) for dim in value.shape or ())]
    if fixed and any(not value.given and not value.constant for value in images):
        yield Finding(
            "unknown",
            f"{node.op_type} of an input of the graph and of what was computed: the converter fails between convolutions",
            "the rewrite reshape_joining_inputs reads the input through a Reshape",
            "reshape_joining_inputs",
        )


def _runtime(question: Question) -> Verdict:
    """Return what a refusal of the CPU runtime means: on a SoC another runtime builds the graph."""
    return "unknown" if question.family else "blocked"


MINDSPORE_LIMITS: Final[Mapping[str, Limit]] = {
    **dict.fromkeys(JOINS, joining_inputs),
    "AveragePool": pool_dilations,
    "Cast": cast,
    "Conv": conv_strides,
    "If": control_flow,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "Loop": control_flow,
    "MaxPool": pool_dilations,
}
"""Operator of `ai.onnx` -> what was measured of it."""
