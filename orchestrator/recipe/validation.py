"""Document -> model, with every complaint of pydantic turned into a placed sentence."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.recipe.problems import Loc, Problem, did_you_mean, nearest, show
from orchestrator.recipe.scalars import plain_scalar
from orchestrator.recipe.yaml_text import Document, Value

M = TypeVar("M", bound=BaseModel)

_MAPPINGS: Final = {"model_type", "dict_type", "model_attributes_type"}
_LISTS: Final = {"tuple_type", "list_type"}
_WHOLE: Final = {"int_type", "int_from_float", "int_parsing", "int_parsing_size"}
_NUMBERS: Final = {*_WHOLE, "float_type"}


def check(document: Document, model: type[M], notes: Mapping[Loc, str]) -> tuple[M | None, list[Problem]]:
    """Validate a document.

    Args:
        document: The parsed file.
        model: What it should be.
        notes: Path -> where its value came from, appended to a message about it.

    Returns:
        The model, or None; and the problems. Both are there where the only problems are unknown fields, so that further
        checks can add theirs.
    """
    try:
        return model.model_validate(document.value), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    problems = [_problem(document, model, detail, notes) for detail in _without_echoes(details, model)]
    if any(detail["type"] != "extra_forbidden" for detail in details):
        return None, problems
    value: Value = document.value
    for detail in details:
        value = _without(value, detail["loc"])
    try:
        return model.model_validate(value), problems
    except ValidationError:
        return None, problems


def _without_echoes(details: list[ErrorDetails], model: type[BaseModel]) -> list[ErrorDetails]:
    """Drop what follows from another mistake: one mistake, one message.

    `x is required` where the same mapping has a misspelt `x`; `needs an entry` where entries are there, but wrong.
    """
    locs = [detail["loc"] for detail in details]
    below = {loc[:size] for loc in locs for size in range(len(loc))}
    echoes = {
        (*detail["loc"][:-1], near)
        for detail in details
        if detail["type"] == "extra_forbidden"
        and (near := nearest(str(detail["loc"][-1]), _fields_at(model, detail["loc"][:-1])))
    }
    found = [detail for detail in details if detail["type"] != "missing" or detail["loc"] not in echoes]
    return [detail for detail in found if detail["type"] != "too_short" or detail["loc"] not in below]


def _problem(document: Document, model: type[BaseModel], detail: ErrorDetails, notes: Mapping[Loc, str]) -> Problem:
    loc = detail["loc"]
    at_key = detail["type"] == "extra_forbidden"
    if not at_key and loc and loc[-1] == "[key]":  # pydantic's way to say that a key, not its value, is wrong
        loc, at_key = loc[:-1], True
    message = _message(document, model, detail, loc)
    note = notes.get(loc)
    return document.problem(loc, f"{message} ({note})" if note else message, key=at_key)


def _message(document: Document, model: type[BaseModel], detail: ErrorDetails, loc: Loc) -> str:
    kind, value, context = detail["type"], cast("object", detail["input"]), detail.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown field" + did_you_mean(str(loc[-1]), _fields_at(model, loc[:-1]))
    if kind == "missing":
        return "this field is required"
    if kind == "literal_error":
        expected = str(context.get("expected", ""))
        known = [word.strip(" '") for word in expected.replace(" or ", ",").split(",")]
        return f"{show(value)} is not one of {', '.join(known)}{did_you_mean(str(value), known, listing=False)}"
    if kind == "string_type":
        raw = document.raw(loc)
        quotes = f'; put it in quotes: "{raw}"' if isinstance(value, int | float) and raw else ""
        return f"must be text, not {show(value)}{quotes}"
    if isinstance(value, str) and document.raw(loc)[:1] in ("'", '"') and _is_number(value) and kind in _NUMBERS:
        return f"must be a number, not the text {show(value)}; leave out the quotes"
    for kinds, what in ((_MAPPINGS, "a mapping"), (_LISTS, "a list"), (_WHOLE, "a whole number")):
        if kind in kinds:
            return f"must be {what}, not {show(value)}"
    plain = _PLAIN.get(kind)
    return plain(value, context) if plain is not None else f"{detail['msg']}"


_PLAIN: Final[dict[str, Callable[[object, Mapping[str, Any]], str]]] = {
    "bool_type": lambda value, _: f"must be true or false, not {show(value)}",
    "float_type": lambda value, _: f"must be a number, not {show(value)}",
    "greater_than_equal": lambda value, context: f"must be at least {context['ge']}, not {show(value)}",
    "less_than_equal": lambda value, context: f"must be at most {context['le']}, not {show(value)}",
    "too_short": lambda _, context: f"needs at least {context['min_length']} entry",
    "too_long": lambda _, context: f"takes at most {context['max_length']} entries, not {context['actual_length']}",
}


def _without(value: Value, loc: Loc) -> Value:
    head, rest = loc[0], loc[1:]
    if isinstance(value, dict):
        if not rest:
            return {key: item for key, item in value.items() if key != head}
        return {key: _without(item, rest) if key == head else item for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_without(item, rest) if index == head else item for index, item in enumerate(value))
    return value


def _fields_at(model: type[BaseModel], loc: Loc) -> list[str]:
    """Return the field names that the schema knows at `loc`; none where it takes any."""
    current: Any = model
    for part in loc:
        current = _step(current, part)
    current = _bare(current)
    return list(current.model_fields) if _is_model(current) else []


def _step(kind: Any, part: str | int) -> Any:
    kind = _bare(kind)
    if _is_model(kind):
        field = kind.model_fields.get(str(part))
        return field.annotation if field is not None else None
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    return arguments[0] if origin is tuple else arguments[1] if origin is dict else None


def _bare(kind: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _bare(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return _bare(next(each for each in typing.get_args(kind) if each is not type(None)))
    return kind


def _is_number(text: str) -> bool:
    try:
        return isinstance(plain_scalar(text), int | float)
    except ValueError:
        return False


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
