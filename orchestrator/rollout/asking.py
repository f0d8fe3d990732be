"""Custom metrics of a rollout: which Prometheus queries are due, and their answers as rows of evidence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from orchestrator.ledger import Rollout
from orchestrator.rollout.evidence.rows import Row, Sample
from orchestrator.rollout.evidence.spec import AnalysisSpec, MetricSpec

_TIMEOUT_S: Final = 2.0
"""A server that does not answer must not keep the controller from what it watches besides."""


def answers(
    row: Rollout, analyses: Iterable[AnalysisSpec], rows: Sequence[tuple[int, Row]], now: float
) -> Iterator[Sample]:
    """Ask what is due and yield the answers; one that cannot be had is a row as well.

    Args:
        row: The rollout; its names go into the queries.
        analyses: Those that watch now.
        rows: All evidence so far.
        now: Unix seconds.
    """
    for metric in _custom(analyses):
        last = next((r.t for _, r in reversed(rows) if isinstance(r, Sample) and r.metric == metric.name), None)
        if metric.prometheus is None or (last is not None and 0 <= now - last < metric.interval_s):
            continue
        from orchestrator.rollout.evidence.prometheus import filled, sample

        names = {"endpoint": row.endpoint, "pool": row.pool, "stable": row.stable, "canary": row.generation}
        query = filled(metric.prometheus.query, names)
        yield sample(metric.name, metric.prometheus.address, query, _TIMEOUT_S, now)


def _custom(analyses: Iterable[AnalysisSpec]) -> list[MetricSpec]:
    found = {metric.name: metric for analysis in analyses for metric in analysis.metrics if metric.prometheus}
    return list(found.values())
