"""`--set path=value`: change a value for one command, by the same rules as in the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn, cast

from orchestrator.core.errors import OrchestratorError
from orchestrator.core.redact import redact_text
from orchestrator.recipe.problems import Loc, Problem, did_you_mean, dotted, raise_problems, show
from orchestrator.recipe.yaml_text import Document, Value, parse_value


def apply_overrides(document: Document, set_: Sequence[str], family: type[OrchestratorError]) -> Document:
    """Return the document with each `path=value` applied, in order.

    Args:
        document: The parsed file.
        set_: Texts such as `params.epochs=3`, `targets.npu.soc=Ascend910B4` (an item of a list by its `name`) or
            `targets.0.soc=...`. The value is YAML.
        family: The error to raise.

    Raises:
        OrchestratorError: Of `family`: no `=`, a bad value, a path that cannot be, an undeclared parameter, or a
            parameter of another type. Unknown fields are left to the schema, which names the nearest.
    """
    for text in set_:
        document = _Override(document, text, family).applied()
    return document


class _Override:
    def __init__(self, document: Document, text: str, family: type[OrchestratorError]) -> None:
        self._document, self._family = document, family
        self._path, equals, self._raw = text.partition("=")
        self._origin = redact_text(f"--set {text}").encode("utf-8", "backslashreplace").decode()
        self._new_at: Loc = ()
        if not equals or not all(self._path.split(".")):
            self._fail("write it as path=value, e.g. params.epochs=3")
        try:
            text.encode()
            self._value = parse_value(self._raw, self._origin, family)
        except UnicodeEncodeError:
            self._fail("the text is not UTF-8")
        except family as error:
            self._fail(error.message)

    def applied(self) -> Document:
        value = self._within(self._document.value, self._path.split("."), ())
        at = self._new_at
        spans = {loc: span for loc, span in self._document.spans.items() if loc[: len(at)] != at}
        overrides = {loc: origin for loc, origin in self._document.overrides.items() if loc[: len(at)] != at}
        overrides[at] = self._origin
        return replace(self._document, value=cast("dict[str, Value]", value), spans=spans, overrides=overrides)

    def _within(self, value: Value, rest: list[str], loc: Loc) -> Value:
        if isinstance(value, dict):
            return self._in_mapping(value, rest, loc)
        if isinstance(value, tuple):
            return self._in_list(value, rest, loc)
        if value is not None:
            self._fail(f"`{dotted(loc)}` is a single value, so it has no `{rest[0]}`")
        return self._in_mapping({}, rest, loc)

    def _in_mapping(self, mapping: dict[str, Value], rest: list[str], loc: Loc) -> Value:
        # Names may hold dots: the longest key that is there wins.
        size = next((n for n in range(len(rest), 0, -1) if ".".join(rest[:n]) in mapping), 1)
        key, rest = ".".join(rest[:size]), rest[size:]
        here = (*loc, key)
        if key not in mapping and loc and loc[-1] == "params":
            self._undeclared(key, mapping)
        if key not in mapping and loc == () and key == "params":
            self._undeclared(rest[0] if rest else key, {})
        if not rest:
            self._new_at = here
            return {**mapping, key: self._typed(mapping.get(key), here, declared=key in mapping)}
        if key not in mapping:
            child: Value = self._value
            for part in reversed(rest):
                child = {part: child}
            self._new_at = here
            return {**mapping, key: child}
        return {**mapping, key: self._within(mapping[key], rest, here)}

    def _in_list(self, items: tuple[Value, ...], rest: list[str], loc: Loc) -> Value:
        names = [str(item.get("name")) if isinstance(item, dict) else "" for item in items]
        if rest[0] in names:
            index = names.index(rest[0])
        elif rest[0].isascii() and rest[0].isdigit() and len(rest[0]) < 6 and int(rest[0]) < len(items):
            index = int(rest[0])
        else:
            known = [name for name in names if name]
            self._fail(f"`{dotted(loc)}` has no item `{rest[0]}`{did_you_mean(rest[0], known)}")
        here = (*loc, index)
        if len(rest) == 1:
            self._new_at = here
            item: Value = self._value
        else:
            item = self._within(items[index], rest[1:], here)
        return (*items[:index], item, *items[index + 1 :])

    def _typed(self, old: Value, loc: Loc, *, declared: bool) -> Value:
        """Keep a text parameter text (`1.10` stays `1.10`), and a parameter's type as the recipe declares it."""
        new = self._value
        if not declared or len(loc) < 2 or loc[-2] != "params":
            return new
        plain = not isinstance(new, dict | tuple)
        if isinstance(old, str) and "${{" not in old and plain:
            return new if isinstance(new, str) else self._raw
        if len(loc) == 2 and old is not None and plain and _kind(old) != _kind(new):
            self._fail(f"`{dotted(loc)}` is {_kind(old)} in the recipe ({show(old)}), not {_kind(new)}")
        return new

    def _undeclared(self, name: str, params: dict[str, Value]) -> NoReturn:
        near = did_you_mean(name, params)
        self._fail(f"the recipe declares no parameter `{name}`{near}; give it a value in the file first")

    def _fail(self, message: str) -> NoReturn:
        raise_problems([Problem(0, 0, self._origin, "", message)], self._family)


def _kind(value: Value) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "text" if isinstance(value, str) else "empty"
