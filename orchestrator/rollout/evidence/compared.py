"""Tests that compare both sides on routed requests: errors, outputs that are no numbers, slow answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from orchestrator.rollout.evidence.judgement import MetricJudgement, Point, State
from orchestrator.rollout.evidence.rows import Counts, Delta, Row
from orchestrator.rollout.evidence.sequential import log_mean_exp
from orchestrator.rollout.evidence.spec import MetricSpec
from orchestrator.rollout.evidence.stream import Allowed, Key, Stream
from orchestrator.rollout.evidence.thresholds import Thresholds

_USERS, _PROBES = 0.8, 0.2
"""Weights of routed requests and of replayed samples in the alarm's e-value."""
_CERTAIN: Final = 0.9
"""Part of a test's alpha for the alarm; the rest is for the bound of stable's earlier rate at weight 100."""


class Test(Protocol):
    """One test of a judge."""

    name: str

    def add(self, row: Row) -> None:
        """Take a row, whatever its kind."""
        ...

    def prime(self, row: Row) -> None:
        """Learn from a row of before the analysis what stable is like; the canary is not judged by it."""
        ...

    @property
    def n(self) -> float:
        """What of the canary was compared so far."""
        ...

    def judge(self) -> MetricJudgement:
        """Return where it stands."""
        ...

    def point(self, t: float) -> Point:
        """Return where its curve stands."""
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """A test's part of an analysis.

    Attributes:
        alpha: Chance of a false alarm of this test alone.
        margin_alpha: Chance that its bound is wrong: the whole alpha of the analysis. It is not divided, since promotion needs *all*
            bounds below their margins: one that is above passes with this chance at most (intersection-union test, Berger 1982).
        min_samples: Requests of the canary before it can pass.
    """

    alpha: float
    margin_alpha: float
    min_samples: int

    @property
    def threshold(self) -> float:
        """Logarithm of the evidence at which the canary has failed."""
        return -math.log(self.alpha * _CERTAIN)

    @property
    def bound(self) -> float:
        """log(1 / alpha) of the bound."""
        return -math.log(self.margin_alpha)

    @property
    def earlier(self) -> float:
        """log(1 / alpha) of the bound of stable's earlier rate."""
        return -math.log(self.alpha * (1 - _CERTAIN))


class Compared:
    """The events of one kind; routed requests and replayed golden samples apart.

    Failed: the evidence has reached the threshold, unless the bound already shows that the difference is within the margin: a canary
    may be that much worse. Passed: the bound of routed requests is below the margin. Where there are too few of them, that of replayed
    samples will do, if routed requests say nothing against it.
    """

    def __init__(self, name: str, spec: MetricSpec, share: Share, margin: float, what: str) -> None:
        self.name, self.spec, self.share, self.margin = name, spec, share, margin
        self._what = what
        self.routed, self.probes = Stream(), Stream()
        self._failed = ""
        self._allowed = Allowed(margin, share.earlier)

    def take(
        self,
        key: Key,
        canary: tuple[float, float],
        stable: tuple[float, float],
        *,
        synthetic: bool,
        shared: float = 0.0,
    ) -> None:
        """Take requests and events of both sides; `shared` of the canary's are stable's as well."""
        if synthetic:
            self.probes.add((50, key[1]), canary, stable, self._allowed)
        else:
            self.routed.add(key, canary, stable, self._allowed, shared)

    def decide(self) -> None:
        """Look whether it has failed; that stays."""
        if not self._failed and self.log_e >= self.share.threshold and not self._tolerated():
            n1, x1 = self.routed.canary
            n2, x2 = self.probes.canary
            self._failed = f"it failed after {n1 + n2:.0f} of the canary, {x1 + x2:.0f} of them {self._what}"

    @property
    def n(self) -> float:
        """What of the canary was compared so far."""
        return self.routed.canary[0] + self.probes.canary[0]

    @property
    def log_e(self) -> float:
        """Logarithm of the evidence that the canary is worse."""
        return log_mean_exp((self.routed.log_e, self.probes.log_e), (_USERS, _PROBES))

    def _tolerated(self) -> bool:
        suspicious = [stream for stream in (self.routed, self.probes) if stream.log_e > 0]
        return all(self._cleared(stream) for stream in suspicious)

    def _cleared(self, stream: Stream) -> bool:
        return stream.canary[0] >= self.share.min_samples and stream.upper(self.share.bound) < self.margin

    def _passed(self) -> bool:
        if self._cleared(self.routed):
            return True
        n1, x1 = self.routed.canary
        n0, x0 = self.routed.stable
        worse = n1 > 0 and x1 / n1 - (x0 / n0 if n0 else 0.0) >= self.margin
        return self.n >= self.share.min_samples and self._cleared(self.probes) and self.routed.log_e <= 0 and not worse

    def judge(self) -> MetricJudgement:
        """Return where it stands."""
        state: State = "failed" if self._failed else "passed" if self._passed() else "inconclusive"
        shown = self._shown()
        (n1, x1), (n0, x0) = self._both()
        upper = shown.upper(self.share.bound)
        needs = 0 if state == "passed" else self._needs(shown)
        return MetricJudgement(
            name=self.name,
            metric=self.spec.name,
            state=state,
            e_value=self.log_e,
            threshold=self.share.threshold,
            upper=upper,
            margin=self.margin,
            canary_n=round(n1),
            stable_n=round(n0),
            canary_rate=x1 / n1 if n1 else 0.0,
            stable_rate=x0 / n0 if n0 else 0.0,
            needs=needs,
            synthetic_share=self.probes.canary[0] / n1 if n1 else 0.0,
            text=self._text(state, (n1, x1, n0, x0), upper, needs),
            decides=not self.spec.dry_run,
        )

    def _needs(self, stream: Stream) -> int | None:
        """Return requests until the margin is cleared; not kept from look to look, so that a replay says the same."""
        found = stream.needs(self.margin, self.share.bound)
        return None if found is None else max(found, math.ceil(self.share.min_samples - self.n))

    def point(self, t: float) -> Point:
        """Return where the curve stands."""
        upper = self._shown().upper(self.share.bound)
        return Point(t, round(self.n), self.log_e, upper, self.margin, self.share.threshold)

    def _shown(self) -> Stream:
        """Return the requests whose bound is told: those of users, unless the replayed ones are what it rests on."""
        if not self.routed.canary[0]:
            return self.probes
        return self.probes if self._cleared(self.probes) and not self._cleared(self.routed) else self.routed

    def _both(self) -> tuple[tuple[float, float], tuple[float, float]]:
        pairs = ((self.routed.canary, self.probes.canary), (self.routed.stable, self.probes.stable))
        (a, b), (c, d) = pairs
        return (a[0] + b[0], a[1] + b[1]), (c[0] + d[0], c[1] + d[1])

    def _text(self, state: State, seen: tuple[float, float, float, float], upper: float, needs: int | None) -> str:
        n1, x1, n0, x0 = seen
        if n1 <= 0:
            waiting = self.routed.open_canary
            more = f"; {waiting:.0f} of the canary wait for stable's beside them" if waiting else ""
            return f"{self.name}: nothing to compare yet{more}"
        both = f", {self.routed.shared:.0f} of them at stable as well" if self.routed.shared else ""
        sides = (
            f"{x1:.0f} of {n1:.0f} {self._what} ({percent(x1 / n1)}{both}), stable {percent(x0 / n0 if n0 else 0.0)}"
        )
        if self.probes.canary[0]:
            sides += f", {percent(self.probes.canary[0] / n1)} of them synthetic"
        late = "; stable had no requests beside them" if self.routed.alone_n1 else ""
        if state == "failed":
            return f"{self.name}: {sides}: worse than stable ({self._failed}){late}"
        bound = f"at most {percent(max(0.0, upper))} worse, margin {percent(self.margin)}{late}"
        if state == "passed":
            return f"{self.name}: {sides}: {bound}"
        more = "these rates do not clear it" if needs is None else f"about {needs} more needed"
        return f"{self.name}: {sides}: {bound}; {more}"


def percent(rate: float) -> str:
    """Return a share as text."""
    return f"{rate * 100:.3g} %"


class Events(Compared):
    """Requests that ended in an event, of those that the router dealt out one by one.

    Args:
        event: Counts them.
        shared: Counts those among the canary's that stable has answered no better.
        what: Names them.
    """

    def __init__(
        self,
        spec: MetricSpec,
        share: Share,
        event: Callable[[Counts], int],
        shared: Callable[[Counts], int],
        what: str,
    ) -> None:
        super().__init__(spec.name, spec, share, spec.limit, what)
        self._event, self._shared = event, shared

    def add(self, row: Row) -> None:
        """Take a row; sticky requests are judged by user, those of header routes and of versions by nobody: they chose their side."""
        if isinstance(row, Delta) and row.traffic in ("weighted", "probe"):
            sides = [(float(side.requests), float(self._event(side))) for side in (row.canary, row.stable)]
            shared = float(self._shared(row.canary))
            self.take((row.weight, ""), sides[0], sides[1], synthetic=row.synthetic, shared=shared)
            self.decide()

    def prime(self, row: Row) -> None:
        """Learn stable's rate."""
        if isinstance(row, Delta) and row.traffic == "weighted":
            self.take(
                (0, ""), (0.0, 0.0), (float(row.stable.requests), float(self._event(row.stable))), synthetic=False
            )


def latency_margin(spec: MetricSpec, quantile: float) -> float:
    """Return the margin at a quantile: at most three times as many slow answers, however wide the metric's margin is."""
    return min(spec.limit, 2 * (1 - quantile))


class Slow(Compared):
    """Batches that took longer than a quantile of stable's batches of as many rows, which was known before."""

    def __init__(self, spec: MetricSpec, share: Share, quantile: float) -> None:
        name = f"latency_p{quantile * 100:g}"
        super().__init__(
            name, spec, share, min(spec.limit, 1 - quantile), f"batches above stable's p{quantile * 100:g}"
        )
        self._thresholds = Thresholds(quantile)

    def add(self, row: Row) -> None:
        """Take a row: first it is judged by what is known, then the thresholds learn from it."""
        if not isinstance(row, Delta) or row.traffic not in ("weighted", "sticky", "probe"):
            return
        for rows in sorted(row.canary.compute.keys() | row.stable.compute.keys()):
            limit = self._thresholds.of(rows)
            if limit is not None:
                sides = [limit.exceeded(side.compute.get(rows, {})) for side in (row.canary, row.stable)]
                self.take((row.weight, rows), sides[0], sides[1], synthetic=row.synthetic)
        self.decide()
        self._thresholds.learn(row.stable.compute)

    def prime(self, row: Row) -> None:
        """Learn the thresholds, and stable's rates above them."""
        if isinstance(row, Delta) and row.traffic in ("weighted", "sticky", "probe"):
            for rows, times in row.stable.compute.items():
                limit = self._thresholds.of(rows)
                if limit is not None and not row.synthetic:
                    self.take((0, rows), (0.0, 0.0), limit.exceeded(times), synthetic=False)
            self._thresholds.learn(row.stable.compute)
