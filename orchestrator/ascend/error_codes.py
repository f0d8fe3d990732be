"""What the numbers of ATC and of aclError mean, in our words, with what to do. Data: `data/error_codes.json`.

Parser codes E190xx of CANN 8 and older became E130xx; both are known and told as one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

Kind = Literal["option", "graph", "environment", "memory", "internal", "warning"]
"""Who must act: option = the caller, graph = the model, environment and memory = the site, internal = the vendor."""

CODE: Final = re.compile(r"\b([EW][A-Z0-9]\d{4})\b")
_GENERIC_FIX: Final = "read the compiler's own text and the log"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One ATC code.

    Attributes:
        code: As printed.
        today: The number that newer versions use for it; the code itself where it never changed.
        known: Whether the tables have it.
    """

    code: str
    today: str
    group: str
    kind: Kind
    title: str
    cause: str
    fix: str
    known: bool


@dataclass(frozen=True, slots=True)
class AclError:
    """One aclError: number, the vendor's constant, our meaning and fix (empty where we have none)."""

    code: int
    name: str
    meaning: str
    fix: str


def explain(code: str) -> Explanation:
    """Return what is known of an ATC code; one that is not known is an internal error without words."""
    table: dict[str, dict[str, Any]] = _data()["atc"]
    row = table.get(code)
    if row is None:
        return Explanation(code, code, "", "internal", "", "", _GENERIC_FIX, known=False)
    today = str(row.get("same_as", code))
    best = row if "kind" in row else table.get(today, row)
    kind: Kind = best.get("kind", "internal")
    return Explanation(
        code,
        today,
        str(row["class"]),
        kind,
        str(best["title"]),
        best.get("cause", ""),
        best.get("fix", _GENERIC_FIX),
        True,
    )


def explain_acl(code: int) -> AclError:
    """Return what is known of an aclError number; a number without a row keeps its class (1 caller … 5 internal)."""
    row = _data()["acl"].get(str(code), {})
    return AclError(
        code, str(row.get("name", "")), str(row.get("meaning", "") or _acl_class(code)), str(row.get("fix", ""))
    )


def _acl_class(code: int) -> str:
    classes = {1: "The call or the environment is wrong.", 2: "A resource is used up.", 3: "The work itself failed."}
    return classes.get(code // 100000, "Internal error.")


@cache
def _data() -> dict[str, Any]:
    text = files("orchestrator.ascend").joinpath("data/error_codes.json").read_text(encoding="utf-8")
    return json.loads(text)
