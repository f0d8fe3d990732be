"""The stored evidence of a rollout, judged again as it grows, and its curves."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.console.charts import count_text, draw
from orchestrator.console.view import Badge, MetricView, Tone
from orchestrator.ledger import Ledger, Rollout
from orchestrator.rollout.evidence.judge import Judge
from orchestrator.rollout.evidence.judgement import MetricJudgement, Point
from orchestrator.rollout.evidence.rows import row_from_json
from orchestrator.rollout.evidence.spec import AnalysisSpec
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_steps import Analysis
from orchestrator.rollout.walk import BACKGROUND_SEQ, STEP_SEQ

_TONES: Final[Mapping[str, Tone]] = {"passed": "good", "failed": "bad", "inconclusive": "warn"}
_KEPT: Final = 32
_PAGE: Final = 10_000


@dataclass(frozen=True, slots=True)
class EvidenceView:
    """All metrics of an analysis, which one it is, and which share of the evidence was replayed samples."""

    metrics: tuple[MetricView, ...]
    what: str
    synthetic_share: float


@dataclass(frozen=True, slots=True)
class Watched:
    """An analysis, judged by the rows of evidence after `since`; `what` says which one it is."""

    spec: AnalysisSpec
    since: int
    what: str


@dataclass(slots=True)
class _Reading:
    """How far the evidence of a rollout was read."""

    judge: Judge
    last: int = 0


class EvidenceReader:
    """Reads each row of evidence once; the judges of the last rollouts that were looked at are kept."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._readings: OrderedDict[tuple[str, int, int, str], _Reading] = OrderedDict()

    def metrics(self, rollout: Rollout, strategy: Strategy) -> EvidenceView | None:
        """Judge what there is by now; None where the strategy analyses nothing."""
        found = watched(rollout, strategy)
        if found is None:
            return None
        with self._lock:
            judge = self._read(rollout, found)
            said, points = judge.judgement(), judge.curve()
        views = tuple(_metric(row, points.get(row.name, ())) for row in said.metrics)
        return EvidenceView(views, found.what, said.synthetic_share)

    def _read(self, rollout: Rollout, found: Watched) -> Judge:
        key = (rollout.endpoint, rollout.generation, found.since, repr(found.spec))
        reading = self._readings.setdefault(key, _Reading(Judge(found.spec)))
        self._readings.move_to_end(key)
        while len(self._readings) > _KEPT:
            self._readings.popitem(last=False)
        while True:
            rows = self._ledger.rollouts.evidence(rollout.endpoint, rollout.generation, after=reading.last, limit=_PAGE)
            for row in rows:
                told = row_from_json(row.body)
                if row.seq > found.since:
                    reading.judge.add(told)
                else:
                    reading.judge.prime(told)  # says what stable is like, as the controller has it
                reading.last = row.seq
            if len(rows) < _PAGE:
                return reading.judge


def watched(rollout: Rollout, strategy: Strategy) -> Watched | None:
    """Return the analysis whose curves are shown: of the step that is under way, else the one beside the steps, else the last one."""
    here = strategy.steps[rollout.step] if rollout.step < len(strategy.steps) else None
    if isinstance(here, Analysis) and STEP_SEQ in rollout.notes:
        return Watched(here.spec, int(rollout.notes[STEP_SEQ]), "the analysis of this step")
    if strategy.analysis is not None:
        return Watched(strategy.analysis, int(rollout.notes.get(BACKGROUND_SEQ, 0)), "the analysis beside the steps")
    past = [step.spec for step in strategy.steps[: rollout.step + 1] if isinstance(step, Analysis)]
    return Watched(past[-1], 0, "the last analysis, over the whole rollout") if past else None


def _metric(found: MetricJudgement, points: Sequence[Point]) -> MetricView:
    seen = [point for point in points if point.n > 0]
    counts = [float(point.n) for point in seen]
    bound = evidence = None
    if found.margin > 0:
        ceiling = max(
            4 * found.margin, 1.5 * found.upper
        )  # the first bounds say next to nothing, and would flatten the rest
        title = f"{found.name}: upper bound {found.upper:.4g} of canary minus stable, margin {found.margin:.4g}"
        bound = draw(title, counts, [min(point.upper, ceiling) for point in seen], found.margin, "margin", percent=True)
    if found.threshold > 0:
        title = f"{found.name}: log evidence {found.e_value:.3g} against the canary, it fails at {found.threshold:.3g}"
        values = [max(point.log_e, -found.threshold) for point in seen]
        evidence = draw(title, counts, values, found.threshold, "fails above")
    return MetricView(
        name=found.name,
        badge=Badge(found.state, _TONES[found.state]),
        text=found.text,
        warning=found.warning,
        decides=found.decides,
        canary=_side(found.canary_rate, found.canary_n),
        stable=_side(found.stable_rate, found.stable_n),
        needs=f"about {count_text(found.needs)} more requests to clear the margin" if found.needs else "",
        synthetic_share=found.synthetic_share,
        evidence=evidence,
        bound=bound,
    )


def _side(rate: float, n: int) -> str:
    return f"{rate * 100:.3g} % of {count_text(n)}" if n else "nothing yet"
