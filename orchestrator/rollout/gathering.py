"""Evidence of one rollout: what the routers count goes to the ledger exactly once, and from there to the judges.

Before rows are added, the rollout's own row says which, and up to where the routers' counts are in them; so whoever goes on
after a kill neither loses a request nor counts one twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from orchestrator.core.faults import point
from orchestrator.ledger import Lease, Ledger, Rollout
from orchestrator.rollout.asking import answers
from orchestrator.rollout.evidence.growth import deltas, joined
from orchestrator.rollout.evidence.rows import Delta, Row, row_from_json
from orchestrator.rollout.site import Site
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_steps import Analysis
from orchestrator.rollout.walk import BACKGROUND_SEQ, ENTERED, STEP_SEQ

if TYPE_CHECKING:
    from orchestrator.rollout.evidence.judge import Judge
    from orchestrator.rollout.evidence.judgement import Judgement
    from orchestrator.rollout.evidence.spec import AnalysisSpec

COUNTED: Final = "counted"
"""Note: the routers' answer up to which everything is in rows."""
PENDING: Final = "pending"
"""Note: rows that are being added, and after which one."""
_OF_USERS: Final = frozenset({"weighted", "sticky", "header"})


@dataclass(slots=True)
class _Running:
    """A judge and what it has heard: rows after `since`."""

    since: int
    spec: AnalysisSpec
    judge: Judge


class Gathering:
    """The evidence of one rollout, in the hands of its controller.

    Args:
        ledger: Where rows are kept; those of earlier controllers are read again.
        site: Whose routers count.
        row: The rollout.
        strategy: Its strategy.
        lease: Ours.
    """

    def __init__(self, ledger: Ledger, site: Site, row: Rollout, strategy: Strategy, lease: Lease) -> None:
        self._ledger, self._site, self._strategy, self._lease = ledger, site, strategy, lease
        self._place = (row.endpoint, row.generation)
        self._rows: list[tuple[int, Row]] = []
        self._judges: dict[str, _Running] = {}
        self._read()
        self._recover(row)

    @property
    def seq(self) -> int:
        """The last row's number; 0 = there is none."""
        return self._rows[-1][0] if self._rows else 0

    @property
    def rows(self) -> Sequence[tuple[int, Row]]:
        """All rows so far, each with its number."""
        return self._rows

    def begin(self) -> dict[str, Any]:
        """Return the note with which counting begins: what was counted before the rollout does not belong to it."""
        return {COUNTED: self._site.evidence(self._place[0])}

    def look(self, row: Rollout, now: float) -> Rollout:
        """Read the routers' counts and keep what is new.

        Raises:
            Unreachable: The router did not answer; nothing was kept.
            Conflict: Fenced.
        """
        if not row.stable:
            return row
        answer = self._site.evidence(row.endpoint)
        found: list[Row] = [*deltas(row.notes.get(COUNTED), answer, row.stable, row.generation, now)]
        found += answers(row, self._watching(row), self._rows, now)
        if not found:
            return row
        rows = [each.to_json() for each in found]
        counted = joined(row.notes.get(COUNTED), answer)
        notes = {**row.notes, COUNTED: counted, PENDING: {"after": self.seq, "rows": rows}}
        row = self._ledger.rollouts.save(replace(row, notes=notes), self._lease)
        point("rollout.counted")
        self._add(rows)
        point("rollout.added")
        return replace(row, notes={name: value for name, value in row.notes.items() if name != PENDING})

    def requests(self, row: Rollout) -> int:
        """Return how many requests of users the canary has answered since the step began."""
        since = int(row.notes.get(STEP_SEQ, 0))
        return sum(
            delta.canary.requests
            for seq, delta in self._rows
            if seq > since and isinstance(delta, Delta) and delta.traffic in _OF_USERS
        )

    def of_step(self, row: Rollout) -> Judgement | None:
        """Return the judgement of the step, where it is an analysis that has begun."""
        if row.step >= len(self._strategy.steps) or row.notes.get(ENTERED) != row.step:
            return None
        step = self._strategy.steps[row.step]
        return self._judgement(f"step {row.step}", step.spec, row, STEP_SEQ) if isinstance(step, Analysis) else None

    def beside(self, row: Rollout) -> Judgement | None:
        """Return the judgement of the analysis beside the steps, where it has begun."""
        spec = self._strategy.analysis
        return None if spec is None else self._judgement("beside", spec, row, BACKGROUND_SEQ)

    def _watching(self, row: Rollout) -> Iterator[AnalysisSpec]:
        """Yield the analyses that watch now."""
        if self._strategy.analysis is not None and BACKGROUND_SEQ in row.notes:
            yield self._strategy.analysis
        step = self._strategy.steps[row.step] if row.step < len(self._strategy.steps) else None
        if isinstance(step, Analysis) and row.notes.get(ENTERED) == row.step:
            yield step.spec

    def _judgement(self, name: str, spec: AnalysisSpec, row: Rollout, note: str) -> Judgement | None:
        if note not in row.notes:
            return None
        since = int(row.notes[note])
        running = self._judges.get(name)
        if running is None or running.since != since:
            running = self._judges[name] = _Running(since, spec, _judge(spec))
            self._feed(running, self._rows)
        return running.judge.judgement()

    def _add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._ledger.rollouts.add_evidence(*self._place, rows, self._lease)
        self._read()

    def _read(self) -> None:
        found = self._ledger.rollouts.evidence(*self._place, after=self.seq)
        fresh = [(row.seq, row_from_json(row.body)) for row in found]
        self._rows += fresh
        for running in self._judges.values():
            self._feed(running, fresh)

    def _feed(self, running: _Running, rows: Sequence[tuple[int, Row]]) -> None:
        for seq, row in rows:
            if seq > running.since:
                running.judge.add(row)
            else:
                running.judge.prime(row)  # says what stable is like

    def _recover(self, row: Rollout) -> None:
        """Add the rows that a killed controller has announced and not added."""
        pending = row.notes.get(PENDING)
        if pending and int(pending["after"]) == self.seq and row.ended_at is None:
            self._add(pending["rows"])


def _judge(spec: AnalysisSpec) -> Judge:
    from orchestrator.rollout.evidence.judge import Judge

    return Judge(spec)
