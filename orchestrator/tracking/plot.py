"""Curves as one SVG, drawn here: MLflow's page shows it, and nothing has to be installed for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 760
_HEIGHT: Final = 150
_LEFT: Final = 64
_RIGHT: Final = 150
_TOP: Final = 28
_FOOT: Final = 24
_COLOURS: Final = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
_MOST_POINTS: Final = 600


@dataclass(frozen=True, slots=True)
class Line:
    """A curve: its name and its (seconds, value) points; `steps` holds a value until the next point, `dashed` is a limit."""

    name: str
    points: tuple[tuple[float, float], ...]
    steps: bool = False
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: curves over the same time."""

    title: str
    lines: tuple[Line, ...]


def draw(title: str, panels: Sequence[Panel]) -> str:
    """Return an SVG of panels below each other over one time axis; empty when no curve has a point."""
    panels = [panel for panel in panels if any(_finite(line) for line in panel.lines)]
    if not panels:
        return ""
    times = [t for panel in panels for line in panel.lines for t, _ in _finite(line)]
    span = (min(times), max(*times, min(times) + 1e-9))
    height = 30 + len(panels) * (_HEIGHT + _TOP + _FOOT)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" font-size="14">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, span, 30 + number * (_HEIGHT + _TOP + _FOOT))
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, span: tuple[float, float], top: float) -> list[str]:
    lines = [(line, found) for line in panel.lines if (found := _finite(line))]
    low, high = _range([value for _, found in lines for _, value in found])
    right, base = _WIDTH - _RIGHT, top + _TOP + _HEIGHT

    def x(t: float) -> float:
        return _LEFT + (t - span[0]) / (span[1] - span[0]) * (right - _LEFT)

    def y(value: float) -> float:
        return base - (value - low) / (high - low) * _HEIGHT

    parts = [
        f'<text x="{_LEFT}" y="{top + 18:.0f}" font-weight="bold">{escape(panel.title)}</text>',
        f'<rect x="{_LEFT}" y="{top + _TOP:.0f}" width="{right - _LEFT}" height="{_HEIGHT}" fill="none" stroke="#ccc"/>',
        *(
            f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>'
            for value in (low, (low + high) / 2, high)
        ),
        f'<text x="{_LEFT}" y="{base + 16:.0f}">{span[0]:.4g} s</text>',
        f'<text x="{right}" y="{base + 16:.0f}" text-anchor="end">{span[1]:.4g} s</text>',
    ]
    for number, (line, found) in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        points = _stairs(found, span[1]) if line.steps else found
        path = " ".join(f"{x(t):.1f},{y(value):.1f}" for t, value in points)
        dash = ' stroke-dasharray="5 3"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
        if len(found) == 1:
            parts.append(f'<circle cx="{x(found[0][0]):.1f}" cy="{y(found[0][1]):.1f}" r="2.5" fill="{colour}"/>')
        label = top + _TOP + 12 + 14 * number
        parts.append(f'<text x="{right + 8}" y="{label:.0f}" fill="{colour}">{escape(line.name)}</text>')
    return parts


def _finite(line: Line) -> list[tuple[float, float]]:
    """Return the points that can be drawn, thinned to what a page can show; first and last stay."""
    found = [(t, value) for t, value in line.points if math.isfinite(t) and math.isfinite(value)]
    stride = max(1, math.ceil(len(found) / _MOST_POINTS))
    return [*found[:-1:stride], found[-1]] if found else []


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(*values, 0.0), max(*values, 0.0)
    return (low, high) if high > low else (low, low + 1.0)


def _stairs(points: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    stairs = [points[0]]
    for t, value in points[1:]:
        stairs += [(t, stairs[-1][1]), (t, value)]
    return [*stairs, (end, stairs[-1][1])]
