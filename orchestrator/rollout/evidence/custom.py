"""Custom metrics: answers of Prometheus, judged by conditions as Argo Rollouts does, but for what cannot be said.

|success|failure|judged|
|---|---|---|
|true|absent|success|
|false|absent|failure|
|absent|true|failure|
|absent|false|success|
|any|true|failure|
|true|false|success|
|false|false|inconclusive|
|absent|absent|inconclusive (Argo's code says success)|

No answer, or one that is not a number, is inconclusive (Argo: an error or a failure). Errors in a row beyond their limit make it
inconclusive as well: a server that cannot be asked is no reason to roll back, and none to go on.
"""

from __future__ import annotations

import math

from orchestrator.rollout.evidence.conditions import Condition
from orchestrator.rollout.evidence.judgement import MetricJudgement, Point, State
from orchestrator.rollout.evidence.rows import Row, Sample
from orchestrator.rollout.evidence.spec import MetricSpec


def outcome(value: float, success: Condition | None, failure: Condition | None) -> State:
    """Judge one answer."""
    if math.isnan(value) or (success is None and failure is None):
        return "inconclusive"
    if failure is not None and failure.holds(value):
        return "failed"
    if success is None or success.holds(value):
        return "passed"
    return "failed" if failure is None else "inconclusive"


class Custom:
    """One query."""

    def __init__(self, spec: MetricSpec) -> None:
        self.name, self.spec = spec.name, spec
        self._success = Condition(spec.success_condition) if spec.success_condition else None
        self._failure = Condition(spec.failure_condition) if spec.failure_condition else None
        self._counts: dict[State, int] = {"passed": 0, "failed": 0, "inconclusive": 0}
        self._errors = self._errors_in_row = 0
        self._last: float | None = None
        self._latest: State = "inconclusive"
        self._error = ""

    def add(self, row: Row) -> None:
        """Take an answer."""
        if not isinstance(row, Sample) or row.metric != self.name:
            return
        if row.error:
            self._errors, self._errors_in_row, self._error = self._errors + 1, self._errors_in_row + 1, row.error
            return
        self._errors_in_row, self._last = 0, row.value
        self._latest = "inconclusive" if row.value is None else outcome(row.value, self._success, self._failure)
        self._counts[self._latest] += 1

    def prime(self, row: Row) -> None:
        """Answers of before are not judged."""

    @property
    def n(self) -> float:
        """Answers so far."""
        return float(sum(self._counts.values()))

    def point(self, t: float) -> Point:
        """Return where the curve stands."""
        return self.judge().point(t)

    def judge(self) -> MetricJudgement:
        """Return where it stands."""
        spec, counts = self.spec, self._counts
        unsure = counts["inconclusive"] > spec.inconclusive_limit or self._errors_in_row > spec.consecutive_error_limit
        state: State = "inconclusive"
        if counts["failed"] > spec.failure_limit:
            state = "failed"
        elif counts["passed"] and not unsure and self._latest != "inconclusive" and not self._errors_in_row:
            state = "passed"
        asked = round(self.n)
        return MetricJudgement(
            name=self.name,
            metric=self.name,
            state=state,
            e_value=0.0,
            upper=0.0,
            canary_n=asked,
            canary_rate=self._last if self._last is not None and math.isfinite(self._last) else 0.0,
            text=self._text(asked),
            decides=not spec.dry_run,
        )

    def _text(self, asked: int) -> str:
        if self._errors_in_row:
            return f"{self.name}: {self._errors_in_row} errors in a row, the last one: {self._error}"
        if not asked:
            return f"{self.name}: not asked yet"
        last = "no answer" if self._last is None else f"{self._last:g}"
        counts = ", ".join(f"{count} {state}" for state, count in self._counts.items() if count)
        hint = "" if self._success or self._failure else "; it has no condition"
        return f"{self.name}: last {last}; {counts}{hint}"
