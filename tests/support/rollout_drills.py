"""kill -9 of a rollout's controller at its fault points under traffic: the same command again comes to the same end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core.errors import OrchestratorError
from orchestrator.ledger import GenerationState, Ledger
from support.forked import fired, passings
from support.rollout_site import ENDPOINT, Child, Drill, RolloutSite
from support.serving_site import ServingSite

ANALYSIS: dict[str, Any] = {
    "metrics": [{"name": "error_rate", "margin": 0.3}],
    "min_samples": 20,
    "interval_s": 0.2,
}
CANARY: dict[str, Any] = {
    "kind": "canary",
    "steps": [{"set_weight": 30}, {"pause": {"min_requests": 10}}, {"analysis": ANALYSIS}, {"set_weight": 60}],
    "kill": {"failures_in_row": 20},
}
HELD: dict[str, Any] = {"kind": "canary", "steps": [{"set_weight": 30}, {"pause": {"duration_s": 30}}]}


@dataclass(frozen=True, slots=True)
class Plan:
    """A command that is killed: `prepare` returns what it does, `during` is done beside it until it ends."""

    name: str
    prepare: Callable[[RolloutSite], tuple[Callable[[], object], float]]
    code: int = 0
    during: Callable[[RolloutSite, Child], None] | None = None


def _promote(site: RolloutSite) -> tuple[Callable[[], object], float]:
    factor = site.other
    return (lambda: site.deploy(factor, CANARY)), factor


def _roll_back(site: RolloutSite) -> tuple[Callable[[], object], float]:
    before = site.factor
    site.deploy(site.other)
    live = site.live.number
    return (lambda: site.rollback(expect=live)), before


def _roll_back_cold(site: RolloutSite) -> tuple[Callable[[], object], float]:
    """Back to what is retired: it is loaded and proven first."""
    wanted = site.other
    gone = site.deploy(wanted)
    live = site.rollback()
    return (lambda: site.rollback(expect=live, to=gone)), wanted


def _lose(site: RolloutSite) -> tuple[Callable[[], object], float]:
    factor, other = site.factor, site.other
    return (lambda: site.deploy(other, HELD)), factor


def _abort(site: RolloutSite, child: Child) -> None:
    """Ask for the abort once the canary has traffic; a command that is killed before is asked nothing."""
    ServingSite.wait(lambda: child.ended() or _held(site), 60, "the canary's pause")
    if not child.ended():
        with suppress(OrchestratorError):  # it may have been killed, and ended by itself, in between
            site.ask("abort")


def _skip(site: RolloutSite, child: Child) -> None:
    """Ask for the promotion without the rest of its steps."""
    ServingSite.wait(lambda: child.ended() or _held(site), 60, "the canary's pause")
    if not child.ended():
        with suppress(OrchestratorError):
            site.ask("promote")


def _hold(site: RolloutSite) -> tuple[Callable[[], object], float]:
    factor = site.other
    return (lambda: site.deploy(factor, HELD)), factor


def _held(site: RolloutSite) -> bool:
    with Ledger.open(site.url) as ledger:
        row = ledger.rollouts.active(ENDPOINT)
        return row is not None and row.step == 1


PROMOTE = Plan("promote", _promote)
ROLLBACK = Plan("rollback", _roll_back)
ABORT = Plan("abort", _lose, code=1, during=_abort)
SKIP = Plan("promote at once", _hold, during=_skip)
COLD = Plan("rollback to unloaded", _roll_back_cold)
PLANS = (PROMOTE, ROLLBACK, COLD, ABORT, SKIP)


def points(site: RolloutSite, plan: Plan, log: Path) -> list[str]:
    """Return the passings `name#k` of one run; traffic must be under way."""
    work, factor = plan.prepare(site)
    log.unlink(missing_ok=True)
    assert not _run(site, plan, work, factor, fault="", log=log)
    return passings(log)


def killed_at(site: RolloutSite, plan: Plan, point: str, log: Path) -> tuple[int, list[str]]:
    """Kill the command there and give it again; returns how often the fault fired, and what is wrong afterwards."""
    work, factor = plan.prepare(site)
    log.unlink(missing_ok=True)
    child = site.child(work, fault=f"{point}:kill", log=log)
    if plan.during is not None:
        plan.during(site, child)
    code = child.wait()
    if not fired(log):
        return 0, [] if code == plan.code else [f"{point}: ended with {code}: {child.said()}"]
    wrong = [] if code == -9 else [f"{point}: fired, and the command ended with {code}"]
    return 1, wrong + _run(site, plan, work, factor)


def _run(site: RolloutSite, plan: Plan, work: Callable[[], object], factor: float, **more: Any) -> list[str]:
    child = site.child(work, **more)
    if plan.during is not None:
        plan.during(site, child)
    code = child.wait()
    wrong = [] if code == plan.code else [f"{plan.name}: ended with {code}: {child.said()[-600:]}"]
    if site.factor != factor:
        wrong.append(f"{plan.name}: the bundle of factor {site.factor} is live, not of {factor}")
    staged = [g.number for g in site.generations if g.state == GenerationState.STAGED]
    with Ledger.open(site.url) as ledger:
        under_way = ledger.rollouts.active(ENDPOINT)
    if staged or under_way is not None:
        wrong.append(f"{plan.name}: generations {staged} are staged, {under_way} is under way")
    return wrong


def _name(passing: str) -> str:
    """Return the point of a passing `name#k`."""
    return passing.rpartition("#")[0]


def kills(
    site: RolloutSite, plan: Plan, chosen: Callable[[list[str]], list[str]] = list, tries: int = 3
) -> list[Drill]:
    """Kill one command at each of the chosen points, one after the other, under traffic; a row per point.

    A point that was passed less often than in the run that was counted has no such passing; that it has fired at another is wanted.
    """
    log, done = site.folder / "faults.log", dict[str, tuple[int, list[str]]]()
    with site.traffic():
        for point in chosen(points(site, plan, log)):
            for _ in range(tries):  # how often a controller looks depends on how quick the machine is
                count, wrong = killed_at(site, plan, point, log)
                if count or wrong:
                    break
            done[point] = (count, wrong)
    reached = {_name(point) for point, (count, _) in done.items() if count}
    rows = [
        Drill(f"{plan.name}: {point}", count, {}, wrong + ([] if _name(point) in reached else ["did not fire"]), 0.0)
        for point, (count, wrong) in done.items()
    ]
    total = sum(count for count, _ in done.values())
    return [
        site.judge(f"{plan.name}: kill -9 of the controller", total, [w for r in rows for w in r.violations]),
        *rows,
    ]


def once_each(found: list[str]) -> list[str]:
    """Return the first passing of every point."""
    return [point for point in found if point.endswith("#1")]
