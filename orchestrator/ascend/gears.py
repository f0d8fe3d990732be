"""Gears and ranges: from `shapes: {batch: [1, 4, 16]}` and the graph's inputs to what a compiler takes.

A size that has one value is fixed. One that has several makes gears: `dynamic_batch_size` where it is dimension 0 of every
input that varies, height and width of an AIPP picture as `dynamic_image_size`, everything else as `dynamic_dims` with one
value for every -1, in the order of the inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final, Protocol

from orchestrator.core.errors import PlanError

LARGEST_SIZE: Final = 2**31 - 1
"""Of one dimension; compilers count in 32 bits."""

_MOST_COMBINATIONS: Final = 256


class InputLike(Protocol):
    """What is needed of a graph's input."""

    @property
    def name(self) -> str:
        """The input's name."""
        ...

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Sizes; a text names one that varies."""
        ...


@dataclass(frozen=True, slots=True)
class Shapes:
    """What to compile for.

    Attributes:
        gears: Every combination of the sizes that vary, by name; one empty combination where none does.
        fixed: Sizes with a single value.
        ranges: Sizes with a range.
        options: Fields of `AtcOptions` that say it to ATC.
    """

    gears: tuple[Mapping[str, int], ...]
    fixed: Mapping[str, int] = field(default_factory=dict[str, int])
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def geared(self) -> bool:
        """Whether there is more than one gear."""
        return len(self.gears) > 1

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return {
            "gears": [dict(gear) for gear in self.gears],
            "fixed": dict(self.fixed),
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
        }


def buckets(inputs: Sequence[InputLike], shapes: Shapes) -> list[dict[str, list[int]]]:
    """Return the concrete shape of every input, once per gear."""
    found: list[dict[str, list[int]]] = []
    for gear in shapes.gears:
        sizes = {**shapes.fixed, **gear}
        found.append(
            {item.name: [dim if isinstance(dim, int) else sizes[dim] for dim in item.shape] for item in inputs}
        )
    return found


def plan_shapes(
    inputs: Sequence[InputLike],
    shapes: Mapping[str, Sequence[int]],
    ranges: Mapping[str, tuple[int, int]] | None = None,
    *,
    pictures: bool = False,
) -> Shapes:
    """Settle every size that varies.

    Args:
        inputs: The graph's inputs.
        shapes: Name of a size -> its values. A name that the graph no longer has is no matter if it has one value.
        ranges: Name of a size -> least and most, in place of gears.
        pictures: Whether an input has AIPP; height and width are then geared as an image size.

    Raises:
        PlanError: A size that varies is not settled, a name is unknown, or gears and ranges are mixed.
    """
    ranges = dict(ranges or {})
    names = list(dict.fromkeys(dim for item in inputs for dim in item.shape if isinstance(dim, str)))
    _check_names(names, shapes, ranges)
    fixed = {name: int(values[0]) for name, values in shapes.items() if len(values) == 1 and name in names}
    several = {name: tuple(int(v) for v in values) for name, values in shapes.items() if len(values) > 1}
    if several and ranges:
        raise PlanError(
            f"sizes {sorted(several)} have gears and {sorted(ranges)} have ranges: a model has one or the other",
            place="shapes",
            hint="give every size that varies gears, or every one a range",
        )
    rows = _gears(several)
    if not names:
        return Shapes(rows, fixed)
    geared = [name for name in names if name in several]
    options: dict[str, Any] = {"input_shape": _input_shape(inputs, fixed, ranges)}
    if geared:
        options |= _gear_options(inputs, geared, rows, pictures=pictures)
    return Shapes(rows, fixed, ranges, options)


def check_input_shape(text: str, inputs: Sequence[InputLike]) -> None:
    """Hold ATC's own text, `name:1,3,-1;other:8`, against the graph; ATC would say it minutes later (E10016, E10049).

    Raises:
        PlanError: It names an input that the graph lacks, leaves one out that varies, or sizes do not fit.
    """
    known = {item.name: item for item in inputs}
    given: dict[str, list[str]] = {}
    for part in text.split(";"):
        name, colon, sizes = part.rpartition(":")
        if not colon or name in given:
            raise _bad_shape(text, f"{part[:80]!r} is not NAME:SIZE,SIZE, once for each input")
        given[name] = sizes.split(",") if sizes else []
    for name, sizes in given.items():
        if name not in known:
            raise _bad_shape(text, f"the graph has no input {name[:80]!r}; its inputs: {', '.join(known)}")
        shape = known[name].shape
        fits = len(sizes) == len(shape) and all(map(_size_fits, sizes, shape))
        if not fits:
            raise _bad_shape(text, f"input {name!r} is {list(shape)} in the graph, not [{', '.join(sizes)}]")
    for name, item in known.items():
        if name not in given and any(isinstance(dim, str) for dim in item.shape):
            raise _bad_shape(text, f"input {name!r} varies and is left out")


def _size_fits(size: str, dim: int | str) -> bool:
    if isinstance(dim, int):
        return size == str(dim)
    low, tilde, high = size.partition("~")
    return size == "-1" or (_is_size(low) and (not tilde or high == "-1" or _is_size(high)))


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST_SIZE)) and int(text) > 0


def _bad_shape(text: str, why: str) -> PlanError:
    return PlanError(f"{text[:200]!r}: {why}", place="--input_shape", hint="e.g. x:1,3,224,224;y:-1,8, as in the graph")


def _check_names(names: list[str], shapes: Mapping[str, Sequence[int]], ranges: Mapping[str, object]) -> None:
    unknown = [name for name, values in shapes.items() if name not in names and len(values) > 1]
    unknown += [name for name in ranges if name not in names]
    if unknown:
        near = get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"sizes that vary: {', '.join(names) or 'none'}"
        raise PlanError(f"the graph has no size called {unknown[0]!r}", place=f"shapes.{unknown[0]}", hint=hint)
    twice = sorted(set(shapes) & set(ranges))
    if twice:
        raise PlanError(f"{twice[0]!r} has values and a range", place=f"shapes.{twice[0]}", hint="give one of them")
    open_ = [name for name in names if name not in shapes and name not in ranges]
    if open_:
        raise PlanError(
            f"the size {open_[0]!r} varies and nothing says which values to compile for",
            place=f"shapes.{open_[0]}",
            hint=f"add `shapes: {{{open_[0]}: [1, 4, 16]}}`, or one value to fix it",
            details={"open": open_},
        )
    bad = [(name, value) for name, values in shapes.items() for value in values if not 1 <= value <= LARGEST_SIZE]
    if bad or any(not values for values in shapes.values()):
        hint = f"give whole numbers from 1 to {LARGEST_SIZE}"
        raise PlanError(f"a size is at least 1: {dict(shapes)}", place="shapes", hint=hint)


def _gears(several: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], ...]:
    count = 1
    for values in several.values():
        count *= len(values)
    if count > _MOST_COMBINATIONS:
        raise PlanError(
            f"{ {name: len(values) for name, values in several.items()} } values make {count} gears",
            place="shapes",
            hint=f"at most {_MOST_COMBINATIONS} on any SoC; 3 or 4 are advised",
        )
    return tuple(dict(zip(several, row, strict=True)) for row in itertools.product(*several.values()))


def _input_shape(inputs: Sequence[InputLike], fixed: Mapping[str, int], ranges: Mapping[str, tuple[int, int]]) -> str:
    parts: list[str] = []
    for item in inputs:
        if set(item.name) & set(";:,"):
            raise PlanError(
                f"input {item.name!r} has one of ; : , in its name, which ATC takes for separators",
                place=item.name,
                hint="rename the input in the model",
            )
        sizes = [str(dim) if isinstance(dim, int) else _size(dim, fixed, ranges) for dim in item.shape]
        parts.append(f"{item.name}:{','.join(sizes)}")
    return ";".join(parts)


def _size(name: str, fixed: Mapping[str, int], ranges: Mapping[str, tuple[int, int]]) -> str:
    if name in ranges:
        return "{}~{}".format(*ranges[name])
    return str(fixed.get(name, -1))


def _gear_options(
    inputs: Sequence[InputLike], geared: list[str], rows: Sequence[Mapping[str, int]], *, pictures: bool
) -> dict[str, Any]:
    places = [(item, axis, dim) for item in inputs for axis, dim in enumerate(item.shape) if dim in geared]
    if len(geared) == 1 and all(axis == 0 for _, axis, _ in places):
        return {"dynamic_batch_size": tuple(row[geared[0]] for row in rows)}
    axes = sorted(axis for _, axis, _ in places)
    if pictures and axes == [2, 3] and len({item.name for item, _, _ in places}) == 1:
        height, width = (str(dim) for _, _, dim in sorted(places, key=lambda place: place[1]))
        return {"dynamic_image_size": tuple((row[height], row[width]) for row in rows), "input_format": "NCHW"}
    order = [str(dim) for _, _, dim in places]
    return {"dynamic_dims": tuple(tuple(row[dim] for dim in order) for row in rows), "input_format": "ND"}
