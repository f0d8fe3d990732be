"""Does the toolchain read the node: domain, opset of the model, operator."""

from __future__ import annotations

from typing import Final

from orchestrator.ascend.operators import (
    atc_operator,
    cann_provider_takes,
    mindspore_lite_parses,
    registered_since,
)
from orchestrator.graph.coverage.judge import Question, advice, rewrite_for
from orchestrator.graph.coverage.nodes import Node
from orchestrator.graph.coverage.verdicts import Finding

_QUANTISED: Final = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)  # fmt: skip
_QUANTISED_FIX: Final = (
    "convert the float model, and quantise it for Ascend: AMCT (post-training, writes AscendQuant/AscendDequant) "
    "or msModelSlim for language models"
)
_NEWEST: Final = 18


def parse_finding(node: Node, question: Question) -> Finding | None:
    """Return why the toolchain does not read the node, None when it does."""
    if question.toolchain == "mindspore-lite":
        return _mindspore_lite(node, question)
    if question.toolchain == "cann-ep":
        found = _cann_provider(node, question)
        if found is not None:
            return found
    return _atc(node, question)


def _atc(node: Node, question: Question) -> Finding | None:
    """The parser key is domain, opset of the model and operator, compared as text (hicann/ge, onnx_parser.cc)."""
    known = atc_operator(node.op_type, node.domain)
    if question.parsers is not None:
        opsets = {opset for domain, opset, op in question.parsers if (domain, op) == (node.domain, node.op_type)}
    else:
        opsets = set(known.opsets) if known else set[int]()
    if (node.op_type == "Constant" and not node.domain) or node.opset in opsets:
        return None  # constants are built into the parser
    if not opsets:
        return _unregistered(node, question)
    if not node.domain and _no_parser_at(node.opset, question):
        return Finding(
            "blocked",
            f"ATC reads models up to opset {_NEWEST}, this model has {node.opset} (the parser's key must match exactly)",
            f"export at opset {_NEWEST} or older (recipe: model.opset), or let the rewrite lower_opset do it",
            "lower_opset",
        )
    rewrite = rewrite_for(node, question, opset_matters=True)
    reason = (
        f"{node.op_type} is parsed in models of opset {_spans(opsets)}, this model has {node.opset} "
        "(the key must match exactly)"
    )
    return Finding("blocked", reason, advice(rewrite, f"export at one of opset {_spans(opsets)}"), rewrite)


def _no_parser_at(opset: int, question: Question) -> bool:
    """Whether the model's opset alone is in the way, so that all its nodes have one cause."""
    return opset > _NEWEST and not any(known == opset and not domain for domain, known, _ in question.parsers or ())


def _unregistered(node: Node, question: Question) -> Finding:
    if node.op_type in _QUANTISED:
        return Finding(
            "blocked", f"ATC has no parser for {node.op_type}: quantised ONNX does not convert", _QUANTISED_FIX
        )
    rewrite = rewrite_for(node, question)
    if node.domain:
        return Finding(
            "blocked",
            f"ATC has no parser for operator domain {node.domain!r}",
            advice(rewrite, "export with standard ONNX operators"),
            rewrite,
        )
    since = registered_since(node.op_type)
    newer = f" (new in opset {since})" if since and since > _NEWEST else ""
    return Finding(
        "blocked",
        f"ATC has no parser for {node.op_type} at any opset{newer}",
        advice(rewrite, "write it with other operators in the model"),
        rewrite,
    )


def _mindspore_lite(node: Node, question: Question) -> Finding | None:
    """The converter goes by the name alone, at any opset (measured with 2.0.0)."""
    if mindspore_lite_parses(node.op_type, node.domain):
        return None
    rewrite = rewrite_for(node, question)
    if node.op_type in _QUANTISED:
        return Finding("blocked", f"the converter does not know {node.op_type}", _QUANTISED_FIX)
    return Finding(
        "blocked",
        f"the converter does not know {node.op_type}" + (f" of domain {node.domain!r}" if node.domain else ""),
        advice(rewrite, "write it with other operators in the model, or use ATC"),
        rewrite,
    )


def _cann_provider(node: Node, question: Question) -> Finding | None:
    """What is not in the provider's list runs on the CPU, with a copy to and fro; nothing here may do so unseen."""
    if cann_provider_takes(node.op_type, node.domain):
        return None
    if node.folded and not node.domain:
        return None  # ONNX Runtime computes it before the provider is asked
    rewrite = rewrite_for(node, question)
    return Finding(
        "blocked",
        f"the CANN provider does not take {node.op_type}: it would run on the CPU, with copies before and after",
        advice(rewrite, "use ATC (format: om) for this model, or write it with other operators"),
        rewrite,
    )


def _spans(opsets: set[int]) -> str:
    """Write {8, 9, 10, 12} as `8-10, 12`; opsets below 8 are of no use and left out."""
    numbers = sorted(opset for opset in opsets if opset >= 8) or sorted(opsets)
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{low}-{high}" if high > low else f"{low}" for low, high in spans)
