"""Tests without a stable side of their own: pairs of answers, users, drift of classes, queries."""

from __future__ import annotations

import math
from typing import Final

from orchestrator.rollout.evidence.compared import Share, percent
from orchestrator.rollout.evidence.judgement import MetricJudgement, Point, State
from orchestrator.rollout.evidence.rows import Delta, Row
from orchestrator.rollout.evidence.sequential import RoutedEvents, chernoff, log_excess, upper_rate
from orchestrator.rollout.evidence.spec import MetricSpec


class Pairs:
    """Copies of requests that both generations have answered: how often the answers differ beyond the tolerance, or the top class does.

    Failed: the evidence against "at most `margin` of all pairs differ" has reached the threshold. Passed: the upper bound is below it.
    A copy that the canary failed to answer differs.
    """

    def __init__(self, spec: MetricSpec, share: Share, *, flips: bool) -> None:
        self.name = f"{spec.name}_flips" if flips else spec.name
        self.spec, self.share = spec, share
        self._flips = flips
        self._n = self._x = self._nonfinite = 0.0
        self._largest = 0.0
        self._pairs = 0.0
        self._failed = False

    def add(self, row: Row) -> None:
        """Take the pairs of a row."""
        if not isinstance(row, Delta) or not row.pairs:
            return
        pairs = row.pairs
        n, failed = pairs.get("n", 0.0), pairs.get("failed", 0.0)
        self._pairs += n + failed
        if self._flips:
            flips = pairs.get("flips", 0.0)
            self._n, self._x = self._n + pairs.get("top1", 0.0) + flips, self._x + flips
        else:
            self._n, self._x = self._n + n + failed, self._x + max(0.0, n - pairs.get("agree", 0.0)) + failed
        self._nonfinite += pairs.get("nonfinite", 0.0)
        self._largest = max(self._largest, pairs.get("max_abs", 0.0))
        self._failed = self._failed or self._log_e() >= self.share.threshold

    def prime(self, row: Row) -> None:
        """Nothing to learn of stable."""

    @property
    def n(self) -> float:
        """Pairs so far."""
        return self._n

    def _log_e(self) -> float:
        return log_excess(self._x, self._n, self.spec.limit)

    def point(self, t: float) -> Point:
        """Return where the curve stands."""
        return self.judge().point(t)

    def judge(self) -> MetricJudgement:
        """Return where it stands."""
        margin, n, x = self.spec.limit, self._n, self._x
        upper = upper_rate(x, n, self.share.bound)
        # An output without classes has no top class that could flip: what agrees on its numbers is enough.
        without = self._flips and n == 0 and self._pairs >= self.share.min_samples
        passed = without or (n >= self.share.min_samples and upper < margin)
        state: State = "failed" if self._failed else "passed" if passed else "inconclusive"
        needs = 0 if state == "passed" else self._needs(margin)
        return MetricJudgement(
            name=self.name,
            metric=self.spec.name,
            state=state,
            e_value=self._log_e(),
            threshold=self.share.threshold,
            upper=0.0 if without else upper,
            margin=margin,
            canary_n=round(n),
            stable_n=round(n),
            canary_rate=x / n if n else 0.0,
            needs=needs,
            text=self._text(state, upper, without=without, needs=needs),
            decides=not self.spec.dry_run,
        )

    def _needs(self, margin: float) -> int | None:
        n, x = max(self._n, 1.0), self._x
        if x / n >= margin:
            return None
        factor = 1.0
        while upper_rate(x * factor, n * factor, self.share.bound) >= margin:
            factor *= 1.25
            if n * factor > 1e7:
                return None
        return max(0, math.ceil(n * factor - self._n), math.ceil(self.share.min_samples - self._n))

    def _text(self, state: State, upper: float, *, without: bool, needs: int | None) -> str:
        what = "top classes" if self._flips else "answers"
        if without:
            return f"{self.name}: the outputs have no classes"
        if self._n == 0:
            return f"{self.name}: no pairs yet (they come from set_mirror)"
        seen = f"{what} differ in {self._x:.0f} of {self._n:.0f} pairs ({percent(self._x / self._n)})"
        extra = f"; {self._nonfinite:.0f} lost their numbers to NaN or infinity" if self._nonfinite else ""
        extra += f"; largest difference {self._largest:.3g}" if self._largest and not self._flips else ""
        bound = f"margin {percent(self.spec.limit)}, at most {percent(upper)}{extra}"
        if state != "inconclusive":
            return f"{self.name}: {seen}: {bound}"
        more = "this rate does not clear it" if needs is None else f"about {needs} more needed"
        return f"{self.name}: {seen}: {bound}; {more}"


_LOOKS: Final = 2.0
"""The bound of users is taken each time they have grown by this factor."""


class Users:
    """Sticky clients: a user is one sample however many requests it sends, since they are alike.

    The side of a user is a hash: each user that meets an event is the canary's with chance weight / 100, independently. A growing
    weight keeps the canary's users, so that one weight's luck lasts into the next: counts of different weights (or lives of a router)
    are not multiplied, each is a test of its own with alpha / (k (k + 1)), k = 1, 2, ... (sums to alpha).
    A user's event may come long after its first request, so that the bound is no martingale: it is a Chernoff bound at a few looks,
    when the canary's users have doubled, with alpha / (j (j + 1)) for look j.
    A client may choose its key, and so its side. Users whose every failed request stable has failed as well are therefore none of the
    alarm's events, which makes it no less valid (fewer events of the canary are less evidence); the bound counts them.
    """

    def __init__(self, spec: MetricSpec, share: Share, event: str) -> None:
        self.name = "users" if event == "users_error" else event
        self.spec, self.share = spec, share
        self._event = event
        self._stages: dict[tuple[str, int], _Stage] = {}
        self._shown: _Stage | None = None
        self._looks = 0
        self._failed = False

    def add(self, row: Row) -> None:
        """Take the users of a row."""
        if not isinstance(row, Delta) or row.traffic != "sticky":
            return
        key = (row.boot, row.weight)
        stage = self._stages.get(key)
        if stage is None:
            stage = self._stages[key] = _Stage(len(self._stages) + 1)
        events = [float(getattr(side, self._event)) for side in (row.canary, row.stable)]
        stage.n1, stage.n0 = stage.n1 + row.canary.users, stage.n0 + row.stable.users
        stage.x1, stage.x0 = stage.x1 + events[0], stage.x0 + events[1]
        if 0 < row.weight < 100:
            own = float(row.canary.users_own) if self._event == "users_error" else events[0]
            stage.process.add_share(row.weight / 100, own, events[1])
        if stage.n1 >= max(stage.next_look, self.share.min_samples) and stage.n0 > 0:
            self._looks += 1
            stage.look(self.share.bound + math.log(self._looks * (self._looks + 1)))
        # A user that is counted again under another weight does not make the picture of the current one.
        self._shown = stage
        self._failed = self._failed or self._log_e() >= self.share.threshold

    def prime(self, row: Row) -> None:
        """Users of before are counted again under the weight that counts."""

    @property
    def n(self) -> float:
        """Users of the canary at the current weight."""
        return self._shown.n1 if self._shown else 0.0

    def _log_e(self) -> float:
        return max((stage.log_e for stage in self._stages.values()), default=0.0)

    def point(self, t: float) -> Point:
        """Return where the curve stands."""
        return self.judge().point(t)

    def judge(self) -> MetricJudgement:
        """Return where it stands."""
        stage, margin = self._shown or _Stage(1), self.spec.limit
        n1, n0 = stage.n1, stage.n0
        rates = (stage.x1 / n1 if n1 else 0.0, stage.x0 / n0 if n0 else 0.0)
        passed = n1 >= self.share.min_samples and stage.upper < margin
        state: State = "failed" if self._failed else "passed" if passed else "inconclusive"
        text = f"{self.name}: {stage.x1:.0f} of {n1:.0f} users of the canary ({percent(rates[0])}), stable {percent(rates[1])}"
        bound = f"at most {percent(max(0.0, stage.upper))} worse at the last look, margin {percent(margin)}"
        return MetricJudgement(
            name=self.name,
            metric=self.spec.name,
            state=state,
            e_value=self._log_e(),
            threshold=self.share.threshold,
            upper=stage.upper,
            margin=margin,
            canary_n=round(n1),
            stable_n=round(n0),
            canary_rate=rates[0],
            stable_rate=rates[1],
            needs=0 if passed else self._needs(stage, rates[0]),
            text=f"{text}: worse than stable"
            if self._failed
            else f"{text}: {bound}"
            if n1
            else f"{self.name}: no sticky users yet",
            decides=not self.spec.dry_run,
        )

    def _needs(self, stage: _Stage, rate: float) -> int | None:
        """Return users of the canary until a look clears the margin, if stable has none of these events."""
        level = self.share.bound + math.log((self._looks + 1) * (self._looks + 2))
        n = float(max(self.share.min_samples, 1))
        while chernoff(rate * n, n, level - math.log(0.75))[1] >= self.spec.limit:
            n *= _LOOKS
            if n > 1e7 or rate >= self.spec.limit:
                return None
        return max(0, math.ceil(n - stage.n1))


class _Stage:
    """One weight in one life of a router."""

    __slots__ = ("n0", "n1", "next_look", "process", "rank", "upper", "x0", "x1")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.process = RoutedEvents()
        self.n1 = self.x1 = self.n0 = self.x0 = self.next_look = 0.0
        self.upper = 1.0

    @property
    def log_e(self) -> float:
        """Logarithm of its evidence, less what its part of alpha costs."""
        return self.process.log_e - math.log(self.rank * (self.rank + 1))

    def look(self, log_inverse_alpha: float) -> None:
        """Take the bound anew."""
        high = chernoff(min(self.x1, self.n1), self.n1, log_inverse_alpha - math.log(0.75))[1]
        low = chernoff(min(self.x0, self.n0), self.n0, log_inverse_alpha - math.log(0.25))[0]
        self.upper, self.next_look = high - low, self.n1 * _LOOKS
