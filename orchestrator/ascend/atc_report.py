"""Reading what ATC says: success or not, codes with their texts, the nodes they name, check_result.json, the last plog lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.ascend.error_codes import CODE, Explanation, explain

SUCCESS: Final = "ATC run success"
_DOTS: Final = re.compile(r"^[.\s]*$")
_NODE: Final = (
    re.compile(r"Op\s*\[\s*([^\s,\]\[]+)\s*,\s*optype\s*\[([^\]\s]+)\]"),  # Op [a/b, optype [Gelu]]
    re.compile(r"Op:\s*(\S+?)\s*,\s*optype:\s*(\w+)"),  # Op: a/b, optype: Gelu
    re.compile(r"for\s+\[([^\]\s]+)\]\s*,?\s*optype\s*\[([^\]\s]+)\]"),  # for [a/b], optype [Gelu]
    re.compile(r"Optype\s*\[(?P<type>[^\]\s]+)\][^\n]*?\bof Ops kernel"),  # no node, only the type
    re.compile(r"\b[Oo][Pp]\s*\[\s*([^\s,\]\[]+)\s*\]"),  # OP[a/b], op [a/b]
    re.compile(
        r"\bOp (?:name )?(?!name\b)([\w./:-]+) (?:specified|with optype (\w+))"
    ),  # Op x specified in, Op x with optype T
    re.compile(r"\boptype (\w+)()\.?$"),
)
_PLOG_LINES: Final = 20
_MOST_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class Finding:
    """One code that ATC printed: what it means to us, its own text, and the node it names, where it names one."""

    explanation: Explanation
    text: str
    node: str = ""
    op_type: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        known = self.explanation
        return {
            "code": known.code, "today": known.today, "kind": known.kind, "title": known.title, "cause": known.cause,
            "fix": known.fix, "text": self.text, "node": self.node, "op_type": self.op_type,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class UnsupportedNode:
    """A node that the parser's own check refuses (check_result.json)."""

    node: str
    op_type: str
    opset: int | None
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return {"node": self.node, "op_type": self.op_type, "opset": self.opset, "reasons": list(self.reasons)}


def succeeded(text: str) -> bool:
    """Tell whether ATC said so; only half of the proof."""
    return SUCCESS in text


def warnings_after_success(text: str) -> tuple[str, ...]:
    """Return the lines that follow the success line: warnings, which are no failure."""
    after = text.partition(SUCCESS)[2].splitlines()[1:]
    return tuple(line.strip()[:400] for line in after if not _DOTS.match(line))[:50]


def findings(text: str) -> tuple[Finding, ...]:
    """Return every error code in the output with the text up to the next one, each (code, node) once."""
    marks = [match for match in CODE.finditer(text) if match[1].startswith("E")]
    found: dict[tuple[str, str, str], Finding] = {}
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for match, end in zip(marks, ends, strict=False):  # no mark: one end too many
        said = text[match.end() : end].partition("TraceBack")[0].strip(" :)\n\r\t")[:_MOST_CHARACTERS]
        for node, op_type in _nodes(said) or [("", "")]:
            key = (match[1], node, op_type)
            earlier = found[key].text if key in found else ""
            both = said if said.startswith(earlier) or not earlier else f"{earlier} | {said}"[:_MOST_CHARACTERS]
            found[key] = Finding(explain(match[1]), both if said not in earlier else earlier, node, op_type)
    return tuple(found.values())


def _nodes(text: str) -> list[tuple[str, str]]:
    for pattern in _NODE:
        matches = list(pattern.finditer(text))
        if not matches:
            continue
        if "type" in pattern.groupindex:
            return [("", str(m["type"])) for m in matches[:50]]
        if pattern is _NODE[-1]:
            return [("", str(m[1])) for m in matches[:50]]
        return [(str(m[1]), str(m[2] or "") if pattern.groups > 1 else "") for m in matches[:50]]
    return []


def check_result(path: Path) -> tuple[UnsupportedNode, ...]:
    """Return the nodes that check_result.json calls failed; none where there is no such file or it is damaged."""
    try:
        if path.stat().st_size > 64 << 20:
            return ()
        data: object = json.loads(path.read_bytes().decode(errors="replace"))
    except (OSError, ValueError, RecursionError):
        return ()
    return tuple(_unsupported(data))


def _unsupported(data: object) -> Iterator[UnsupportedNode]:
    rows = cast("dict[str, Any]", data).get("op") if isinstance(data, dict) else None
    for row in cast("list[object]", rows if isinstance(rows, list) else []):
        if not isinstance(row, dict):
            continue
        fields = cast("dict[str, Any]", row)
        if fields.get("result") != "failed":
            continue
        domain, _, rest = str(fields.get("type", "")).partition("::")
        opset, _, op_type = rest.partition("::")
        causes = fields.get("cause")
        reasons = [
            str(cast("dict[str, Any]", cause).get("message", ""))[:300]
            for cause in cast("list[object]", causes if isinstance(causes, list) else [])
            if isinstance(cause, dict)
        ]
        yield UnsupportedNode(
            str(fields.get("name", "")), op_type or domain, int(opset) if opset.isdigit() else None, tuple(reasons)
        )


def plog_errors(folder: Path) -> tuple[str, ...]:
    """Return the last ERROR lines of CANN's own logs below `folder`; the real cause often stands only there."""
    lines: list[str] = []
    for path in sorted(folder.rglob("plog-*.log"), key=lambda item: item.stat().st_mtime):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 20)))
            text = file.read().decode(errors="replace")
        lines += [line[:400] for line in text.splitlines() if "[ERROR]" in line]
    return tuple(lines[-_PLOG_LINES:])
