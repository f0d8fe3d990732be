"""Claim: good canaries are called bad no more often than alpha says, however often one looks; bad ones are caught early.

    python benchmarks/evidence.py [--quick] [--json] [--rollouts N] [--seed N]

Simulated traffic, dealt by the router's own permuted blocks of 100, judged at every tick (50 requests: inside blocks too). A/A: two
generations that are alike, whose error rate and times drift together, over a weight that grows 5, 10, 25, 50 %. Beside it, on the same
streams, what other tools do: p99 of a window of 50 canary requests <= 1.2 times stable's; more than 2 % errors in a window of 100
canary requests; Mann-Whitney on times, p < 0.05 peeked at every 50 canary requests. Then bad canaries: the share that is caught
within 4,000 requests of the canary, and how many of them it took. Last, a good canary that is attacked: a client sends it, and it alone
(by a sticky key, say), requests that stable fails as well when it is asked in its place. Exit status 1 where false alarms are above alpha
beyond chance.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from orchestrator.rollout.evidence.judge import Judge
from orchestrator.rollout.evidence.rows import MIRROR, Counts, Delta
from orchestrator.rollout.evidence.spec import AnalysisSpec, MetricSpec
from orchestrator.serving.observe.buckets import bucket_of
from orchestrator.serving.split import Splitter

ALPHA = 0.05
TICK = 50
MOST = 4000
"""Requests of the canary after which a rollout ends."""


@dataclass
class Side:
    """How a generation behaves: chances by request, times in us. `poisoned` requests fail at stable as well, which is `told` or not."""

    errors: float = 0.01
    nan: float = 0.0
    slower: float = 1.0
    tail: float = 0.0
    differs: float = 0.0
    dies_after: int = 0
    poisoned: float = 0.0
    told: bool = True

    def error_rate(self, served: int) -> float:
        """Return the chance of an error; one that runs out of memory dies again and again, each time for as long as it lived / 10."""
        if not self.dies_after:
            return self.errors
        return 1.0 if served % self.dies_after > 0.9 * self.dies_after else self.errors


@dataclass
class Found:
    """How one rollout went: canary requests at the alarm by rule; None = no alarm."""

    judge: int | None = None
    window_p99: int | None = None
    window_errors: int | None = None
    mann_whitney: int | None = None
    passed: bool = False
    by: str = ""


@dataclass
class Peers:
    """Rules of other tools on the same requests."""

    times: dict[int, list[float]] = field(default_factory=lambda: {0: [], 1: []})
    errors: list[bool] = field(default_factory=list)

    def look(self, found: Found, canary_n: int, before_n: int) -> None:
        """Ask the rules, every 50 requests of the canary."""
        if canary_n // 50 == before_n // 50:
            return
        mine, other = self.times[1], self.times[0]
        if found.window_p99 is None and np.percentile(mine[-50:], 99) > 1.2 * np.percentile(other[-1000:], 99):
            found.window_p99 = canary_n
        if found.window_errors is None and len(self.errors) >= 100 and sum(self.errors[-100:]) > 2:
            found.window_errors = canary_n
        if (
            found.mann_whitney is None
            and stats.mannwhitneyu(mine, other[-20_000:], alternative="greater").pvalue < ALPHA
        ):
            found.mann_whitney = canary_n


def spec(mirror: bool) -> AnalysisSpec:
    names = ("error_rate", "latency", "nonfinite", *(("parity",) if mirror else ()))
    return AnalysisSpec(metrics=tuple(MetricSpec(name=name) for name in names), alpha=ALPHA)


def rollout(
    seed: int, canary: Side, weights: list[tuple[int, int]], *, peers: bool, mirror: bool, wander: bool
) -> Found:
    """Simulate one rollout.

    Args:
        seed: Of everything that is random.
        canary: How it behaves.
        weights: (weight, canary requests until the next one).
        peers: Whether the rules of other tools are asked too.
        mirror: Whether answers are compared in pairs.
        wander: Whether rates and times of both sides drift together.
    """
    dice, numbers = random.Random(seed), np.random.default_rng(seed)
    judge, others, found = Judge(spec(mirror)), Peers(), Found()
    served, sides, t = 0, (Side(), canary), 0
    for weight, until in weights:
        splitter = Splitter({0: 100 - weight, 1: weight}, str(seed))
        while served < until:
            t += 1
            level = 1 + 0.8 * math.sin(t / 40) if wander else 1.0
            before = served
            served, row = tick(
                t, weight, splitter, sides, served, (dice, numbers), level, others if peers else None, mirror
            )
            judge.add(row)
            if peers:
                others.look(found, served, before)
            if found.judge is None and (metric := failed(judge)):
                found.judge, found.by = served, metric
                if not peers:
                    return found
    found.passed = judge.judgement().state == "passed"
    return found


def failed(judge: Judge) -> str:
    """Return the test that has failed, without the figures of the others."""
    return next((test.name for test in judge._tests if getattr(test, "_failed", False)), "")


def tick(
    t: int, weight: int, splitter: Splitter, sides: tuple[Side, Side], served: int, dice: tuple[random.Random, Any],
    level: float, others: Peers | None, mirror: bool,
) -> tuple[int, Delta]:  # fmt: skip
    random_, numbers = dice
    counts: list[dict[str, Any]] = [
        {"requests": 0, "errors": 0, "shared": 0, "nonfinite": 0, "times": {}} for _ in sides
    ]
    noise, uniform = numbers.normal(size=TICK), numbers.random(size=(TICK, 3))
    for place in range(TICK):
        arm = splitter.next() or 0
        side, into = sides[arm], counts[arm]
        into["requests"] += 1
        served += arm
        error = uniform[place, 0] < level * side.error_rate(served)
        if side.poisoned and random_.random() < side.poisoned:
            error = True
            into["shared"] += side.told
        into["errors"] += error
        if not error:
            time_us = (
                2000
                * math.exp(0.25 * noise[place])
                * (1 + level / 10)
                * side.slower
                * (3 if uniform[place, 1] < side.tail else 1)
            )
            bucket = str(bucket_of(time_us))
            into["times"][bucket] = into["times"].get(bucket, 0) + 1
            into["nonfinite"] += uniform[place, 2] < side.nan
            if others is not None:
                others.times[arm].append(time_us)
        if others is not None and arm:
            others.errors.append(bool(error))
    made = [
        Counts(
            requests=c["requests"],
            errors=int(c["errors"]),
            shared=c["shared"],
            nonfinite=int(c["nonfinite"]),
            compute={"1": c["times"]},
        )
        for c in counts
    ]
    pairs = None
    if mirror:
        agree = sum(random_.random() >= sides[1].differs for _ in range(10))
        pairs = {"n": 10.0, "agree": float(agree)}
        served = served or 0
    return served, Delta(
        t=t,
        boot="a",
        traffic="weighted" if not mirror or weight else MIRROR,
        weight=weight,
        canary=made[1],
        stable=made[0],
        pairs=pairs,
    )


GROWING = [(5, 300), (10, 800), (25, 2000), (50, MOST)]
BAD: dict[str, tuple[Side, bool]] = {
    "errors 1 % -> 5 %": (Side(errors=0.05), False),
    "+20 % latency": (Side(slower=1.2), False),
    "tail only: 3 % of answers x3": (Side(tail=0.03), False),
    "wrong outputs: 3 % of pairs": (Side(differs=0.03), True),
    "NaN in 1 % of answers": (Side(nan=0.01), False),
    "memory grows to death (every 200 requests)": (Side(dies_after=200), False),
    "crash loop: all requests fail": (Side(errors=1.0), False),
}
_RULES: list[tuple[str, Callable[[Found], int | None]]] = [
    ("this judge", lambda f: f.judge),
    ("window p99 <= 1.2x", lambda f: f.window_p99),
    ("window errors > 2 %", lambda f: f.window_errors),
    ("Mann-Whitney peeked", lambda f: f.mann_whitney),
]


def _good(seed: int, peers: bool) -> Found:
    return rollout(seed, Side(), GROWING, peers=peers, mirror=False, wander=True)


def good(rollouts: int, seed: int) -> dict[str, Any]:
    """Return how often each rule calls a good canary bad; the rules of others, which take long, on the first 50."""
    both = min(rollouts, 50)
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(_good, range(seed, seed + rollouts), (i < both for i in range(rollouts)), chunksize=5))
    alarms = {name: sum(rule(f) is not None for f in found) for name, rule in _RULES}
    of = {name: rollouts if name == "this judge" else both for name, _ in _RULES}
    most = int(stats.binom.ppf(0.999, rollouts, ALPHA))
    return {
        "rollouts": rollouts, "alpha": ALPHA, "alarms": alarms, "of": of, "most_by_chance": most,
        "share": {name: alarms[name] / of[name] for name in alarms},
        "passed": sum(f.passed for f in found) / rollouts, "ok": alarms["this judge"] <= most,
    }  # fmt: skip


def bad(runs: int, seed: int, weights: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for name, (side, mirror) in BAD.items():
        for weight in weights:
            found = [
                rollout(seed + i, side, [(weight, MOST)], peers=False, mirror=mirror, wander=True) for i in range(runs)
            ]
            spent = sorted(f.judge for f in found if f.judge is not None)
            rows.append({
                "canary": name, "weight": weight, "runs": runs, "caught": len(spent) / runs,
                "median": spent[len(spent) // 2] if spent else None, "p90": spent[int(0.9 * (len(spent) - 1))] if spent else None,
                "by": sorted({f.by for f in found if f.by}),
            })  # fmt: skip
    return rows


def attacked(runs: int, seed: int) -> dict[str, Any]:
    """Return how often a good canary of which 20 % of the requests are poison is called bad, or promoted."""
    found = {
        told: [
            rollout(seed + i, Side(poisoned=0.2, told=told), [(10, 1000)], peers=False, mirror=False, wander=True)
            for i in range(runs)
        ]
        for told in (True, False)
    }
    alarms = {told: sum(f.judge is not None for f in rows) for told, rows in found.items()}
    passed = sum(f.passed for f in found[True])
    return {"runs": runs, "alarms": alarms[True], "alarms_if_charged": alarms[False], "passed": passed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="200 good rollouts, 20 of each bad canary")
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    parser.add_argument("--rollouts", type=int, default=0, help="good ones; 2,000, or 200 with --quick")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rollouts = options.rollouts or (200 if options.quick else 2000)
    aa = good(rollouts, options.seed * 1_000_000)
    rows = bad(20 if options.quick else 100, options.seed * 1_000_000, (5, 10, 50))
    poison = attacked(20 if options.quick else 100, options.seed * 1_000_000)
    if options.json:
        print(json.dumps({"good": aa, "bad": rows, "attacked": poison}))
        return 0 if aa["ok"] else 1
    print(
        f"good canaries, {rollouts} rollouts to {MOST} canary requests, looked at every {TICK} requests; alpha {ALPHA:.0%}"
    )
    for name in aa["alarms"]:
        print(f"  {name:24} {aa['alarms'][name]:5} of {aa['of'][name]:5} called bad ({aa['share'][name]:.1%})")
    print(
        f"  promoted within {MOST} canary requests: {aa['passed']:.0%} (without more: inconclusive, never called bad)\n"
    )
    print(f"{'bad canary':44} {'weight':>6} {'caught':>7} {'median':>7} {'p90':>6}  canary requests; by")
    for row in rows:
        figures = [("-" if row[name] is None else str(row[name])) for name in ("median", "p90")]
        print(
            f"{row['canary']:44} {row['weight']:5}% {row['caught']:7.0%} {figures[0]:>7} {figures[1]:>6}  {', '.join(row['by'])}"
        )
    print(
        f"\na good canary, 20 % of its requests chosen to fail at stable as well: {poison['alarms']} of {poison['runs']} called bad "
        f"({poison['alarms_if_charged']} if the canary alone were charged), {poison['passed']} promoted"
    )
    return 0 if aa["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
