"""Judge every node of a graph against one toolchain, SoC and precision mode."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

from orchestrator.ascend.installed import find_opp, read_cann
from orchestrator.ascend.kernels import cube_dtypes, shipped
from orchestrator.ascend.operators import cann_provider_takes, tables_version
from orchestrator.ascend.soc import caution
from orchestrator.ascend.soc import soc as find_soc
from orchestrator.core.errors import PlanError
from orchestrator.graph.coverage.judge import Question
from orchestrator.graph.coverage.kernels import kernel_finding
from orchestrator.graph.coverage.limits_atc import ATC_EVERYWHERE, ATC_LIMITS
from orchestrator.graph.coverage.limits_mindspore import MINDSPORE_LIMITS
from orchestrator.graph.coverage.limits_mindspore_measured import measured
from orchestrator.graph.coverage.nodes import Node, nodes_of
from orchestrator.graph.coverage.parsers import parse_finding
from orchestrator.graph.coverage.verdicts import Coverage, Finding, NodeVerdict, worst
from orchestrator.graph.read import Limits, inferred

TOOLCHAINS: Final = ("atc", "mindspore-lite", "cann-ep")
PRECISIONS: Final = ("fp16", "mixed_float16", "cube_fp16in_fp32out", "mixed_bfloat16", "origin", "fp32")
_DOMAINS: Final = frozenset(
    {"", "npu", "mmdeploy", "com.microsoft", "ai.onnx.ml", "org.pytorch.aten", "mmcv", "custom"}
)


def cover(
    path: Path, *, soc: str | None, toolchain: str, precision: str = "fp16", installed: Path | None = None
) -> Coverage:
    """Judge every node of the ONNX file, subgraphs included.

    Args:
        path: The ONNX file; it is read through the safe door.
        soc: As ATC spells it. Only `mindspore-lite` may go without: then its own limits alone are judged.
        toolchain: `atc`, `mindspore-lite` or `cann-ep`.
        precision: Precision mode in ATC's words.
        installed: Home or operator package of a CANN to ask; without it one found on the machine, else the shipped tables.

    Raises:
        PlanError: Toolchain, SoC or precision mode do not exist, or do not fit each other.
        GateError: The file is refused.
        InfraError: The CANN that was named has no operator information, or it is damaged.
    """
    question, tables, notes = _question(soc, toolchain, precision, installed)
    model = inferred(path, limits=Limits(domains=_DOMAINS))
    nodes = tuple(nodes_of(model))
    verdicts = tuple(_verdict(node, question) for node in nodes)
    opset = next((int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 0)
    splits = _splits(nodes) if toolchain == "cann-ep" else 1
    if splits > 1:
        notes.append(f"the CANN provider would cut this graph into {splits} parts, with copies between them")
    version = tables_version(toolchain)
    return Coverage(soc, toolchain, version, tables, precision, opset, verdicts, splits, tuple(notes))


def check_toolchain(key: str) -> None:
    """Refuse a toolchain that compiles nothing for Ascend.

    Raises:
        PlanError: It is unknown, or `onnx` or `torch`; the hint lists those that can be covered.
    """
    if key not in TOOLCHAINS:
        plain = f"{key} compiles nothing for Ascend: there is nothing to cover"
        text = plain if key in {"onnx", "torch"} else f"unknown toolchain {key[:80]!r}"
        raise PlanError(text, hint=f"use one of {', '.join(TOOLCHAINS)}")


def _question(
    soc: str | None, toolchain: str, precision: str, installed: Path | None
) -> tuple[Question, str, list[str]]:
    check_toolchain(toolchain)
    if precision not in PRECISIONS:
        raise PlanError(f"unknown precision mode {precision[:80]!r}", hint=f"use one of {', '.join(PRECISIONS)}")
    if soc is None:
        if toolchain != "mindspore-lite":
            raise PlanError(f"{toolchain} compiles for a SoC, and none was named", hint="name one, e.g. Ascend310P3")
        return Question(toolchain, "", precision, shipped(), None), tables_version(toolchain), []
    family = find_soc(soc).family.lower()
    hardware = cube_dtypes(family)
    if precision == "mixed_bfloat16" and hardware is not None and "bfloat16" not in hardware:
        raise PlanError(f"{soc} has no bfloat16", hint="use fp16, mixed_float16 or cube_fp16in_fp32out")
    opp = find_opp(installed)
    cann = read_cann(opp, family) if opp is not None else None
    notes = [caution(soc)] if caution(soc) else []
    if opp is not None and cann is None:
        notes.append(f"the CANN at {opp.parent} has no operator information of {family}; the shipped tables answer")
    if cann is not None:
        parsers = cann.parsers if toolchain != "mindspore-lite" else None
        by_parsers = (
            "" if parsers is not None or toolchain == "mindspore-lite" else f"; parsers: {tables_version('atc')}"
        )
        tables = f"installed {cann.kernels.name}{by_parsers}"
        return Question(toolchain, family, precision, cann.kernels, parsers), tables, notes
    tables = f"shipped: kernels {shipped().name}; parsers {tables_version(toolchain)}"
    return Question(toolchain, family, precision, shipped(), None), tables, notes


def _verdict(node: Node, question: Question) -> NodeVerdict:
    findings = [finding for finding in _findings(node, question) if finding.verdict != "ok"]
    verdict = worst(finding.verdict for finding in findings)
    main = next((finding for finding in findings if finding.verdict == verdict), Finding("ok", ""))
    ordered = [main, *(finding for finding in findings if finding is not main)] if findings else []
    return NodeVerdict(
        node=node.name,
        op_type=node.op_type,
        domain=node.domain,
        path=node.path,
        verdict=verdict,
        reasons=tuple(finding.reason for finding in ordered),
        fix=main.fix,
        source=node.source,
        rewrite=main.rewrite,
    )


def _findings(node: Node, question: Question) -> Iterator[Finding]:
    unread = parse_finding(node, question)
    if unread is not None:
        yield unread
        return  # what is not even read has no kernel and no limits
    lite = question.toolchain == "mindspore-lite"
    if not node.domain:
        limit = (MINDSPORE_LIMITS if lite else ATC_LIMITS).get(node.op_type)
        if limit is not None:
            yield from limit(node, question)
    for everywhere in (measured,) if lite else ATC_EVERYWHERE:
        yield from everywhere(node, question)
    found = kernel_finding(node, question)
    if found is not None:
        yield found


def _splits(nodes: tuple[Node, ...]) -> int:
    """Count the runs of nodes of the main graph that the provider takes or leaves, in graph order."""
    sides = [cann_provider_takes(node.op_type, node.domain) for node in nodes if not node.path and not node.folded]
    return 1 + sum(left != right for left, right in pairwise(sides))
