"""Geometry of the small charts; the template draws it as inline SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 320
HEIGHT: Final = 140
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 30
_MOST_POINTS: Final = 160
_TICKS: Final = 4


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One line against its decision line, ready to draw in `WIDTH` x `HEIGHT`.

    Attributes:
        title: What a screen reader says of it.
        line: Points of the line, as SVG writes them.
        last: The newest point.
        limit_y: Height of the decision line; None where it is far outside.
        limit_text: What the decision line is.
    """

    title: str
    line: str
    last: tuple[float, float]
    limit_y: float
    limit_text: str
    limit_text_y: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def draw(
    title: str, xs: Sequence[float], ys: Sequence[float], limit: float, limit_text: str, *, percent: bool = False
) -> Chart | None:
    """Lay out a line; None with fewer than two finite points.

    Args:
        title: What it shows.
        xs: Requests of the canary, growing.
        ys: The value after so many.
        limit: Of the decision line.
        limit_text: Its label.
        percent: Whether values are shares.
    """
    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(pairs) < 2 or not math.isfinite(limit):
        return None
    pairs = _thin(pairs)
    low_x, high_x = pairs[0][0], max(pairs[-1][0], pairs[0][0] + 1)
    low_y, high_y = _span([y for _, y in pairs], limit)
    to_x, to_y = _scale(low_x, high_x, _LEFT, WIDTH - _RIGHT), _scale(low_y, high_y, HEIGHT - _BOTTOM, _TOP)
    points = [(_at(x, *to_x), _at(y, *to_y)) for x, y in pairs]
    limit_y = _at(limit, *to_y)
    return Chart(
        title=title,
        line=" ".join(f"{x},{y}" for x, y in points),
        last=points[-1],
        limit_y=limit_y,
        limit_text=limit_text,
        limit_text_y=limit_y + 11 if limit_y + 13 < HEIGHT - _BOTTOM else limit_y - 4,
        x_ticks=tuple(Tick(_at(v, *to_x), count_text(v)) for v in _ticks(low_x, high_x, whole=True)),
        y_ticks=tuple(Tick(_at(v, *to_y), _value_text(v, percent)) for v in _ticks(low_y, high_y)),
    )


def count_text(value: float) -> str:
    """Return a count in few characters: `950`, `1.2k`, `3M`."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


def _value_text(value: float, percent: bool) -> str:
    return f"{value * 100:.3g}%" if percent else f"{value:.3g}"


def _thin(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the extremes of each of some stretches, so that no crossing is lost."""
    if len(pairs) <= _MOST_POINTS:
        return pairs
    size = math.ceil(2 * len(pairs) / _MOST_POINTS)
    kept: list[tuple[float, float]] = [pairs[0]]
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return [*kept, pairs[-1]]


def _span(ys: Sequence[float], limit: float) -> tuple[float, float]:
    low, high = min(*ys, limit, 0.0), max(*ys, limit)
    reach = (high - low) or 1.0
    return low - 0.04 * reach if low < 0 else low, high + 0.12 * reach


def _scale(low: float, high: float, start: int, end: int) -> tuple[float, float]:
    factor = (end - start) / (high - low)
    return factor, start - low * factor


def _at(value: float, factor: float, offset: float) -> float:
    return round(value * factor + offset, 1)


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step) + 1)]
