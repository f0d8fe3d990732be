"""Plots as inline SVG: no script, no font, no file from anywhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from orchestrator.graph.forecast.result import NodeView, Point

_WIDTH: Final = 720
_HEIGHT: Final = 264
_LEFT: Final = 52
_BOTTOM: Final = 50
_TOP: Final = 22
_MOST_DB: Final = 120.0
_INNER: Final = (_WIDTH - _LEFT - 10, _HEIGHT - _TOP - _BOTTOM)


def damage_plot(views: Sequence[NodeView], asked_db: float) -> str:
    """Return SQNR per tensor in topological order: local and cumulative, and the line that is asked of outputs."""
    if not views:
        return _empty("no tensor was looked at")
    top = _MOST_DB
    marks: list[str] = []
    for index, view in enumerate(views):
        x = _LEFT + _INNER[0] * (index + 0.5) / len(views)
        for kind, damage in (("local", view.local), ("cumulative", view.cumulative)):
            if damage is None:
                continue
            y = _y(max(0.0, min(top, damage.sqnr_db)), 0.0, top)
            tip = f"{view.node}: {kind} {damage.sqnr_db:.1f} dB{' BROKEN' if damage.broken else ''}"
            style = "broken" if damage.broken else kind
            marks.append(
                f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(tip)}</title></circle>'
            )
    y = _y(asked_db, 0.0, top)
    marks.append(f'<line class="asked" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - 10}" y2="{y:.1f}"/>')
    return _frame(
        "".join(marks) + _scale(0.0, top) + _below("SQNR in dB of the tensors in topological order"), "damage per node"
    )


def exponent_plot(exponents: Mapping[int, float], *, low: str) -> str:
    """Return the histogram of binary exponents; the range that fp16 holds in full is shaded."""
    if not exponents:
        return _empty("no value was looked at")
    first, last = min(*exponents, -26), max(*exponents, 17)
    width, peak = _INNER[0] / (last - first + 1), max(exponents.values())
    least, most = (-14, 15) if low == "fp16" else (-126, 127)
    x0 = _LEFT + (max(first, least) - first) * width
    x1 = _LEFT + (min(last, most) - first + 1) * width
    bars = [f'<rect class="held" x="{x0:.1f}" y="{_TOP}" width="{x1 - x0:.1f}" height="{_INNER[1]}"/>']
    for exponent, share in exponents.items():
        height = max(1.0, _INNER[1] * math.sqrt(share / peak))
        x, y = _LEFT + (exponent - first) * width, _TOP + _INNER[1] - height
        tip = f"2^{exponent}: {share:.3%}"
        bars.append(
            f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{max(1.0, width - 1):.1f}" height="{height:.1f}">'
            f"<title>{escape(tip)}</title></rect>"
        )
    for exponent in range(-(-first // 8) * 8, last + 1, 8):
        x = _LEFT + (exponent - first + 0.5) * width
        bars.append(f'<text x="{x:.1f}" y="{_HEIGHT - 30}" text-anchor="middle">{exponent}</text>')
    return _frame("".join(bars) + _below("binary exponent of the values; height is the root of the share"), "exponents")


def pareto_plot(points: Sequence[Point], asked_db: float) -> str:
    """Return accuracy against cost of every keep list that was tried; the best of each cost are joined."""
    if not points:
        return _empty("no keep list was needed")
    shown = [(point, max(0.0, min(_MOST_DB, point.sqnr_db))) for point in points]
    top, most = max(asked_db, *(db for _, db in shown)) * 1.05, max(1e-9, *(point.flops_share for point, _ in shown))
    marks: list[str] = []
    line: list[str] = []
    best = -1.0
    for point, db in sorted(shown, key=lambda item: (item[0].flops_share, -item[1])):
        x, y = _LEFT + _INNER[0] * point.flops_share / most, _y(db, 0.0, top)
        if db > best:
            best = db
            line.append(f"{x:.1f},{y:.1f}")
        tip = f"{point.nodes} nodes, {point.flops_share:.2%} of the operations: {point.sqnr_db:.1f} dB"
        style = "good" if point.passed else "cumulative"
        marks.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(tip)}</title></circle>')
    joined = f'<polyline class="front" points="{" ".join(line)}"/>'
    y = _y(asked_db, 0.0, top)
    asked = f'<line class="asked" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - 10}" y2="{y:.1f}"/>'
    label = _below(f"SQNR in dB, by the share of operations in fp32, 0 to {most:.2%}")
    return _frame(joined + "".join(marks) + asked + _scale(0.0, top) + label, "pareto")


def _y(value: float, low: float, high: float) -> float:
    return _TOP + _INNER[1] * (1.0 - (value - low) / ((high - low) or 1.0))


def _scale(low: float, high: float) -> str:
    found: list[str] = []
    for step in range(5):
        value = low + (high - low) * step / 4
        found.append(f'<text x="{_LEFT - 5}" y="{_y(value, low, high) + 4:.1f}" text-anchor="end">{value:.0f}</text>')
    return "".join(found)


def _below(text: str) -> str:
    return f'<text x="{_LEFT}" y="{_HEIGHT - 4}">{escape(text)}</text>'


def _frame(inner: str, label: str) -> str:
    axis = f'<rect class="axis" x="{_LEFT}" y="{_TOP}" width="{_INNER[0]}" height="{_INNER[1]}"/>'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{axis}{inner}</svg>'


def _empty(text: str) -> str:
    return f"<p>{escape(text)}</p>"
