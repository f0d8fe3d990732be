"""The evidence of a rollout as curves and figures: judged again from the ledger's rows, so that every look draws the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from orchestrator.rollout.evidence.judge import Judge
from orchestrator.rollout.evidence.rows import row_from_json
from orchestrator.rollout.strategy import Strategy
from orchestrator.tracking.plot import Line, Panel, draw
from orchestrator.tracking.snapshot import MetricPoint

if TYPE_CHECKING:
    from orchestrator.ledger import EvidenceRow, Rollout
    from orchestrator.rollout.evidence.judgement import Point

_MOST_POINTS: Final = 200


@dataclass(frozen=True, slots=True)
class Picture:
    """What a page shows of a rollout's evidence.

    Attributes:
        points: Weight, e-values and bounds over time, in its order.
        figures: The last value of each.
        plot: An SVG; empty where nothing was counted.
    """

    points: tuple[MetricPoint, ...]
    figures: dict[str, float]
    plot: str


def picture(row: Rollout, rows: Sequence[EvidenceRow]) -> Picture:
    """Judge all rows by every analysis of the rollout's strategy, and draw them."""
    strategy = Strategy.from_json(row.strategy)
    weights = [(row.started_at, 0.0), *((each.t, float(each.body.get("weight") or 0)) for each in rows)]
    if row.ended_at is not None:
        weights.append((row.ended_at, 100.0 if row.state.value == "succeeded" else 0.0))
    changes = [weights[0], *(now for before, now in pairwise(weights) if now[1] != before[1])]
    curves: dict[str, Sequence[Point]] = {}
    for spec in strategy.analyses:
        judge = Judge(spec)
        for each in rows:
            judge.add(row_from_json(each.body))
        curves = {**judge.curve(), **curves}  # of two with one name the analysis beside the steps is shown
    points = [MetricPoint("weight", value, 0, _ms(t)) for t, value in changes]
    for name, found in curves.items():
        for point in _thinned(found):
            values = {"log_e": point.log_e, "upper": point.upper}
            points += [MetricPoint(f"{name}/{part}", value, point.n, _ms(point.t)) for part, value in values.items()]
    points.sort(key=lambda point: point.t_ms)
    figures = {point.name: point.value for point in points}
    figures |= {f"{name}/requests": float(found[-1].n) for name, found in curves.items() if found}
    return Picture(tuple(points), figures, _plot(row, changes, curves))


def _plot(row: Rollout, weights: Sequence[tuple[float, float]], curves: dict[str, Sequence[Point]]) -> str:
    start = row.started_at
    end = row.ended_at if row.ended_at is not None else max((t for t, _ in weights), default=start)
    held = [*weights, (max(end, weights[-1][0]), weights[-1][1])]
    panels = [Panel("weight of the canary, %", (_line("weight", [(t - start, w) for t, w in held], steps=True),))]
    for name, found in curves.items():
        if not found:
            continue
        evidence = _line("log e", [(p.t - start, p.log_e) for p in found])
        limit = _line("fails above", [(p.t - start, p.threshold) for p in found], dashed=True)
        panels.append(Panel(f"{name}: evidence that the canary is worse (log e-value)", (evidence, limit)))
        bound = _line("upper bound", [(p.t - start, p.upper) for p in found])
        margin = _line("margin", [(p.t - start, p.margin) for p in found], dashed=True)
        panels.append(Panel(f"{name}: upper bound of canary - stable", (bound, margin)))
    return draw(f"{row.endpoint}: generation {row.stable} to {row.generation}, {row.state.value}", panels)


def _line(name: str, points: Sequence[tuple[float, float]], *, steps: bool = False, dashed: bool = False) -> Line:
    return Line(name, tuple(points), steps, dashed)


def _thinned(points: Sequence[Point]) -> list[Point]:
    stride = max(1, -(-len(points) // _MOST_POINTS))
    return [*points[:-1:stride], points[-1]] if points else []


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
