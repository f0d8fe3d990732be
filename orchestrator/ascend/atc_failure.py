"""Turning ATC's failures into one error each: whose it is, which node, which line of the user's model, what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from orchestrator.ascend.atc_report import Finding
from orchestrator.core.errors import GateError, InternalError, OrchestratorError, PlanError

if TYPE_CHECKING:
    from orchestrator.ascend.atc import Attempt

_GENERIC: Final = frozenset({"E19999", "EZ9999", "E10042", "E10041"})
_TAIL_CHARACTERS: Final = 4000
_NAMED: Final = 5


def failure(attempts: Sequence[Attempt], timeout_s: float, source_of: Callable[[str], str]) -> OrchestratorError:
    """Return the error of the last attempt; it has no retry class, because our own attempts are used up."""
    last = attempts[-1]
    details: dict[str, Any] = {
        "attempts": [attempt.to_json() for attempt in attempts],
        "command": list(last.ended.command),
        "logs": str(last.folder),
        "findings": [item.to_json() for item in last.findings][:50],
        "output": last.ended.text[-_TAIL_CHARACTERS:],
        "stderr": last.ended.error_text[-_TAIL_CHARACTERS:],
        "plog": list(last.plog),
    }
    place, times = str(last.folder), f"{len(attempts)} time{'s' if len(attempts) > 1 else ''}"
    if last.outcome == "hang":
        return InternalError(
            f"ATC did not end within {timeout_s:g} s, {times}; its processes were ended",
            place=place, hint="raise `compile.timeout`; its last lines are in the log", details=details,
        )  # fmt: skip
    if last.outcome == "memory":
        return InternalError(
            f"ATC ran out of memory {times}, the last time with one kernel compiler (exit {last.ended.code})",
            place=place, hint="compile on a machine with more memory, or with smaller gears", details=details,
        )  # fmt: skip
    if last.outcome == "crash":
        return InternalError(
            f"ATC crashed (exit {last.ended.code})",
            place=place, hint="a defect of this ATC or of the graph it got; log and command are kept there", details=details,
        )  # fmt: skip
    if last.outcome == "no_file":
        return InternalError(
            "ATC says that it succeeded, but left no .om or an empty one",
            place=place, hint="check free disk space; the log and the command are kept there", details=details,
        )  # fmt: skip
    return _refused(last, details, source_of)


def _refused(last: Attempt, details: dict[str, Any], source_of: Callable[[str], str]) -> OrchestratorError:
    nodes = _nodes(last, source_of)
    details["nodes"] = nodes
    finding = _first(last.findings)
    if finding is None:
        if nodes:
            text = f"ATC cannot read {len(nodes)} nodes: {_listed(nodes)}"
            return GateError(text, place=_where(nodes, ""), hint="see `orchestrate coverage`", details=details)
        said = (last.ended.text.strip() or last.ended.error_text.strip()).splitlines()
        text = f"ATC failed (exit {last.ended.code}) and gave no code: {said[-1][:300] if said else 'it said nothing'}"
        return InternalError(text, place=str(last.folder), hint="the log is kept there", details=details)
    known = finding.explanation
    renamed = f", today {known.today}" if known.today != known.code else ""
    title = f"{known.title}. {known.cause}" if known.cause else known.title or "no explanation is known for this code"
    named = f" Nodes: {_listed(nodes)}." if nodes else ""
    text = f"ATC {known.code}{renamed}: {title}{named} It says: {finding.text[:400] or '(nothing)'}"
    if known.kind == "option":
        return PlanError(text, place=_where(nodes, ""), hint=known.fix, details=details)
    if known.kind == "graph" or nodes:
        return GateError(text, place=_where(nodes, ""), hint=known.fix, details=details)
    return InternalError(text, place=str(last.folder), hint=known.fix, details=details)


def _first(found: Sequence[Finding]) -> Finding | None:
    """Return the finding that says most: a code of its own before the generic ones, one with a node before one without."""
    ranked = sorted(
        found, key=lambda item: (item.explanation.code in _GENERIC, not item.explanation.known, not item.node)
    )
    return ranked[0] if ranked else None


def _nodes(last: Attempt, source_of: Callable[[str], str]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for node in last.unsupported:
        rows[node.node, node.op_type] = {**node.to_json(), "source": source_of(node.node)}
    for item in last.findings:
        if item.node and not any(name == item.node for name, _ in rows):
            row = {"node": item.node, "op_type": item.op_type, "opset": None, "reasons": [item.text[:300]]}
            rows[item.node, item.op_type] = {**row, "source": source_of(item.node)}
    return list(rows.values())


def _listed(nodes: Sequence[dict[str, Any]]) -> str:
    shown = [
        f"{row['node']}"
        + (f" ({row['op_type']})" if row["op_type"] else "")
        + (f" at {row['source']}" if row["source"] else "")
        for row in nodes[:_NAMED]
    ]
    more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    return ", ".join(shown) + more


def _where(nodes: Sequence[dict[str, Any]], otherwise: str) -> str:
    return next((str(row["source"] or row["node"]) for row in nodes), otherwise)
