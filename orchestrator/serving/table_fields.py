"""The fields of a routing table, checked one by one; each error names its place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

from orchestrator.core.errors import ServingError


def wrong(message: str, place: str) -> ServingError:
    """Return the error of a place in the table."""
    return ServingError(f"routing table: {message}", place=place, hint="send a whole, valid table")


def check_object(value: object, place: str, keys: Sequence[str], optional: Sequence[str] = ()) -> Mapping[str, object]:
    """Return a mapping that has all of `keys` but perhaps the optional ones."""
    if not isinstance(value, Mapping):
        raise wrong("must be an object", place)
    body = cast("Mapping[str, object]", value)
    if not set(keys) - set(optional) <= set(body) <= set(keys):
        raise wrong(f"has keys {sorted(body)}, needs {sorted(keys)}", place)
    return body


def check_int(value: object, place: str, low: int, high: int) -> int:
    """Return a whole number between two limits."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise wrong(f"{value!r} must be an integer from {low} to {high}", place)
    return value


def check_number(value: object, place: str, low: float, high: float) -> float:
    """Return a finite number between two limits."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise wrong(f"{value!r} must be a number", place)
    if not low <= value <= high:
        raise wrong(f"{value!r} must be from {low} to {high}", place)
    return float(value)


def check_text(value: object, place: str) -> str:
    """Return a text that can be shown."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise wrong(f"{value!r} must be a printable text", place)
    return value
