"""Preflight of the targets: the untrained graph is rewritten as each toolchain needs it, and every node is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.ascend.toolchains import Target, Toolchain, toolchain
from orchestrator.core.errors import GateError
from orchestrator.graph.coverage import Coverage, NodeVerdict, cover
from orchestrator.graph.prepare import Prepared, prepare

_COMPILING: Final = frozenset({"atc", "mindspore-lite", "cann-ep"})
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class TargetCheck:
    """What was found for one target.

    Attributes:
        evidence: One line for the report's list of checks.
        coverage: None for a toolchain that compiles nothing, and where the rewrites themselves failed.
        refused: Nodes that do not convert, each with its reason, fix and source line.
        failure: What the rewrites said when they failed.
    """

    name: str
    evidence: str
    prepared: Prepared | None = None
    coverage: Coverage | None = None
    refused: tuple[NodeVerdict, ...] = ()
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields for the report."""
        return {
            "evidence": self.evidence,
            "prepared": self.prepared.to_json() if self.prepared else None,
            "coverage": self.coverage.to_json() if self.coverage else None,
            "failure": self.failure,
            "refused": [node.to_json() for node in self.refused],
        }


def check_target(graph: Path, spec: Mapping[str, Any], work: Path) -> TargetCheck:
    """Rewrite the exported graph for one target and judge what comes out.

    Args:
        graph: The exported, untrained model.
        spec: The recipe's target, as JSON.
        work: Folder for the rewritten graph.

    Raises:
        PlanError: The target asks for what does not exist (a rewrite, a precision mode on this SoC).
    """
    target = Target(spec["name"], spec["format"], spec["soc"])
    chain = toolchain(target)
    if chain.key not in _COMPILING:
        return TargetCheck(target.name, f"{chain.tool} runs the model as it is; nothing is converted")
    precision = str(spec.get("precision", "fp16"))
    switches = cast("Mapping[str, bool]", spec.get("rewrites") or {})
    shapes = cast("Mapping[str, Sequence[int]]", spec.get("shapes") or {})
    try:
        prepared = prepare(
            graph,
            work / target.name,
            toolchain=chain.key,
            soc=target.soc,
            precision=precision,
            shapes=shapes,
            switches=switches,
        )
    except GateError as error:
        return _not_prepared(graph, target, chain, precision, switches, error)
    found = cover(prepared.path, soc=target.soc, toolchain=chain.key, precision=precision)
    refused = tuple(_with_switch(node, target.name, switches) for node in found.offending("blocked"))
    return TargetCheck(target.name, _evidence(target, chain, prepared, found), prepared, found, refused)


def refusal(step: str, checks: Sequence[TargetCheck]) -> GateError | None:
    """Return the error that names every node which stands in the way, None when there is none."""
    bad = [check for check in checks if check.refused or check.failure]
    if not bad:
        return None
    lines: list[str] = []
    for check in bad:
        lines += [f"target {check.name}: {_line(node)}" for node in check.refused[:_NAMED]]
        if len(check.refused) > _NAMED:
            lines.append(f"target {check.name}: {len(check.refused) - _NAMED} more nodes")
        if not check.refused:
            lines.append(f"target {check.name}: {check.failure}")
    first = next((node for check in bad for node in check.refused), None)
    return GateError(
        "the model does not convert: " + "; ".join(lines),
        place=(first.source if first else "") or step,
        hint=(first.fix if first else "") or "see the step's report",
        details={"targets": {check.name: check.to_json() for check in bad}},
    )


def warnings(check: TargetCheck) -> list[str]:
    """Return one line per operator that will be slow, or of which no table tells whether it converts; and each note."""
    if check.coverage is None:
        return []
    groups: dict[tuple[str, str, str], list[NodeVerdict]] = {}
    for node in check.coverage.offending("slow", "unknown"):
        groups.setdefault((node.verdict, node.op_type, node.reasons[0]), []).append(node)
    found = [
        f"target {check.name}: {verdict}: {nodes[0].node}"
        f"{f' and {len(nodes) - 1} more' if len(nodes) > 1 else ''} ({op_type}): {reason}"
        for (verdict, op_type, reason), nodes in groups.items()
    ]
    notes = (*check.coverage.notes, *(check.prepared.notes if check.prepared is not None else ()))
    return [*found, *(f"target {check.name}: {note}" for note in notes)]


def _not_prepared(
    graph: Path, target: Target, chain: Toolchain, precision: str, switches: Mapping[str, bool], error: GateError
) -> TargetCheck:
    """Join what the rewrites could not do with what coverage says of those nodes in the graph as exported."""
    problems = cast("list[dict[str, str]]", error.details.get("nodes") or [])
    as_exported = cover(graph, soc=target.soc, toolchain=chain.key, precision=precision)
    judged = {node.node: node for node in as_exported.nodes}
    refused = tuple(
        _with_switch(judged[problem["node"]], target.name, switches)
        for problem in problems
        if problem["node"] in judged and judged[problem["node"]].verdict == "blocked"
    )
    evidence = f"{target.soc or 'any device'} by {chain.tool}: the rewrites cannot make a graph that it reads"
    return TargetCheck(target.name, evidence, None, as_exported, refused, error.message)


def _with_switch(node: NodeVerdict, target: str, switches: Mapping[str, bool]) -> NodeVerdict:
    """Say how the recipe turns the rewrite on that would remove the node."""
    if node.rewrite is None:
        return node
    if switches.get(node.rewrite) is False:
        fix = (
            f"the recipe switches the rewrite {node.rewrite} off for target {target}: take `{node.rewrite}: false` out"
        )
    elif node.rewrite not in switches:
        fix = f"{node.fix}; the recipe turns it on with `rewrites: {{{node.rewrite}: true}}` of target {target}"
    else:
        return node
    return replace(node, fix=fix)


def _evidence(target: Target, chain: Toolchain, prepared: Prepared, found: Coverage) -> str:
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found.counts.items() if count)
    rewrites = ", ".join(item.rewrite for item in prepared.applied) or "none needed"
    return (
        f"{target.soc or 'any device'} by {chain.tool}, {found.precision}: opset {found.opset}, {counts}; "
        f"rewrites: {rewrites}; tables: {found.tables}"
    )


def _line(node: NodeVerdict) -> str:
    where = f" at {node.source}" if node.source else ""
    inside = f" in {node.path}" if node.path else ""
    rewrite = f" (rewrite: {node.rewrite})" if node.rewrite else ""
    return f"node {node.node}{inside} ({node.op_type}{where}): {'; '.join(node.reasons)}{rewrite}"
