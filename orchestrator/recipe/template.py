"""`${{ params.x }}`: a parameter's value, put where it is named. Nothing is evaluated.

As the whole value it keeps the parameter's type; inside other text it is written out. `$${{` stands for `${{` itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, cast

from orchestrator.recipe.problems import Loc, Problem, did_you_mean, dotted, show
from orchestrator.recipe.scalars import Scalar
from orchestrator.recipe.yaml_text import Document, Value

_PLACE: Final = re.compile(r"\$\$\{\{|\$\{\{(?P<inside>.*?)\}\}|\$\{\{", re.DOTALL)
_PARAM: Final = re.compile(r"\s*params\.([A-Za-z_][A-Za-z0-9_]*)\s*")
_MARK: Final = "${{"


@dataclass(frozen=True, slots=True)
class Filled:
    """A document with its parameters in place.

    Attributes:
        document: Same positions as before.
        notes: Path -> where its value came from.
        problems: What could not be filled in.
        unfilled: Paths, dotted, of values left as they were; what is said about them later is an echo.
    """

    document: Document
    notes: dict[Loc, str]
    problems: list[Problem]
    unfilled: set[str]


def fill(document: Document) -> Filled:
    """Put parameters in their places. Parameters that are not single values are left to the schema to complain about."""
    filler = _Filler(document)
    value = cast("dict[str, Value]", filler.value(document.value, ()))
    return Filled(replace(document, value=value), filler.notes, filler.problems, filler.unfilled)


def as_text(value: Scalar) -> str:
    """Return a parameter as it stands inside other text, written as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


class _Filler:
    def __init__(self, document: Document) -> None:
        params = document.value.get("params")
        self._params: Mapping[str, Value] = params if isinstance(params, dict) else {}
        self._malformed = params is not None and not isinstance(params, dict)
        self._document = document
        self.notes: dict[Loc, str] = {}
        self.problems: list[Problem] = []
        self.unfilled: set[str] = set()

    def value(self, value: Value, loc: Loc) -> Value:
        if isinstance(value, dict):
            return {self._key(key, loc): self.value(item, (*loc, key)) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(self.value(item, (*loc, index)) for index, item in enumerate(value))
        if isinstance(value, str) and _MARK in value:
            return self._filled(value, loc)
        return value

    def _key(self, key: str, loc: Loc) -> str:
        if _MARK in key:
            message = "a parameter can stand in a value, not in a field's name"
            self.problems.append(self._document.problem((*loc, key), message, key=True))
        return key

    def _filled(self, text: str, loc: Loc) -> Value:
        names: list[str] = []
        pieces: list[str] = []
        start, whole = 0, None
        for match in _PLACE.finditer(text):
            pieces.append(text[start : match.start()])
            start = match.end()
            if match[0] == "$" + _MARK:
                pieces.append(_MARK)
                continue
            found = self._param(match, text, loc)
            if found is None:
                self.unfilled.add(dotted(loc))
                return text
            names.append(found)
            whole = match[0]
            pieces.append(as_text(cast("Scalar", self._params[found])))
        if names:
            self.notes[loc] = "from " + ", ".join(f"params.{name}" for name in dict.fromkeys(names))
        if whole == text.strip():
            return self._params[names[0]]
        return "".join(pieces) + text[start:]

    def _param(self, match: re.Match[str], text: str, loc: Loc) -> str | None:
        inside = match["inside"]
        if loc[0] == "params":
            return self._wrong(match, text, loc, "a parameter cannot be made of other parameters")
        if inside is None:
            return self._wrong(
                match, text, loc, "`${{` is not closed by `}}`; write `$${{` for the characters themselves"
            )
        named = _PARAM.fullmatch(inside)
        if named is None:
            message = f"only `${{{{ params.NAME }}}}` is understood, not {show(inside.strip())}"
            return self._wrong(match, text, loc, message)
        name = named[1]
        if self._malformed or isinstance(self._params.get(name), dict | tuple):
            return None
        if name not in self._params:
            message = f"there is no parameter `{name}`{did_you_mean(name, self._params)}"
            return self._wrong(match, text, loc, message)
        return name

    def _wrong(self, match: re.Match[str], text: str, loc: Loc, message: str) -> None:
        """Note a problem at the very characters, where the file shows them as they are."""
        line, column, place = self._document.place(loc)
        raw = self._document.raw(loc)
        at = -1
        for _ in range(text.count(match[0], 0, match.start()) + 1):
            at = raw.find(match[0], at + 1)
        if at >= 0 and line:
            before = raw[:at]
            rows = before.count("\n")
            line, column = line + rows, (len(before) - before.rfind("\n") if rows else column + at)
            place = f"{self._document.name}:{line}:{column}"
        self.problems.append(Problem(line, column, place, dotted(loc), message))
