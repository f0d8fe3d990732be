"""Deploy: from a bundle on disk to the live generation of an endpoint. Kill it anywhere, run it again, same end.

    append staged -> publish beside the old -> replicas ready -> smoke test -> walk (controller.py) -> commit live
    -> publish -> the former one stays warm, older ones drain and retire

The ledger decides and the table follows: a crash between the two is healed by the next publish. Without a strategy, or
with nothing live, there is no walk: the switch is one write at the router.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from orchestrator.core.errors import Conflict, GateError, IntegrityError, ServingError, UsageError
from orchestrator.core.faults import point
from orchestrator.core.ids import check_name
from orchestrator.ledger import Generation, GenerationState, Holder, Lease, Ledger, Owner, Rollout, RolloutState
from orchestrator.rollout.controller import Controller
from orchestrator.rollout.going_back import before
from orchestrator.rollout.lead import follow
from orchestrator.rollout.request import Deployed, DeployRequest
from orchestrator.rollout.room import make_room
from orchestrator.rollout.site import Site
from orchestrator.rollout.smoke import SmokeReport, smoke_test
from orchestrator.rollout.stage import TTL_S, Pace, Stage
from orchestrator.rollout.telling import outcome

_MOST_FLIPS: Final = 3
"""So many rollouts of one build, one after the other, may be taken back by themselves; then a person must look."""


def deploy(
    ledger: Ledger,
    site: Site,
    request: DeployRequest,
    owner: Owner,
    *,
    on_wait: Callable[[Holder], None] | None = None,
    tell: Callable[[str], None] | None = None,
    pace: Pace | None = None,
) -> Deployed:
    """Make a bundle the live generation of an endpoint, or leave everything as it was.

    Args:
        ledger: The serve site's ledger.
        site: Where to serve.
        request: What to serve.
        owner: Who asks; the same command by anyone finishes what a killed one began.
        on_wait: Hears of another rollout of this endpoint that is waited for.
        tell: Hears one line per stage.
        pace: Clock and sleep of the walk.

    Raises:
        Conflict: Another rollout holds the endpoint, another generation is live than expected, or fenced.
        GateError: The smoke test or the evidence said no; the generation is `failed`, the old one has all requests.
        ServingError: The replicas did not get ready; likewise.
        Waiting: The rollout is paused; the same command goes on.
        NoCapacity: The pool cannot hold both generations; nothing was loaded.
        Unreachable: The router did not answer; nothing is decided, the same command goes on.
    """
    name = f"endpoint/{check_name(request.endpoint, 'endpoint')}"
    pace = pace or Pace(now=ledger.now)
    while True:
        ours = _under_way(ledger, request)
        wait_s = 0.0 if ours is not None else request.wait_s
        try:
            lease = ledger.leases.acquire(name, owner, ttl_s=TTL_S, wait_s=wait_s, on_wait=on_wait)
        except Conflict:
            if ours is None:
                raise
            ended = follow(ledger, ours, on_wait=on_wait, pace=pace)
            if ended is not None:
                outcome(ended)
            continue
        try:
            return _Deploy(ledger, site, request, lease, tell or _silent, pace).go()
        finally:
            ledger.leases.release(lease)


def _silent(_text: str) -> None:
    return


def _under_way(ledger: Ledger, request: DeployRequest) -> Rollout | None:
    """Return the active rollout of what is asked for, which another command may be driving."""
    active = ledger.rollouts.active(request.endpoint)
    canary = ledger.generations.get(request.endpoint, active.generation) if active is not None else None
    return active if canary is not None and request.asks_for(canary) else None


class _Deploy:
    """One deploy, by the holder of the endpoint's lease."""

    def __init__(
        self,
        ledger: Ledger,
        site: Site,
        request: DeployRequest,
        lease: Lease,
        tell: Callable[[str], None],
        pace: Pace,
    ) -> None:
        self._ledger, self._site, self._request, self._lease = ledger, site, request, lease
        self._tell, self._pace = tell, pace
        self._stage = Stage(ledger, site, lease, actor=request.actor, tell=tell, pace=pace)

    def go(self) -> Deployed:
        known = self._ledger.generations.list(self._request.endpoint)
        live = next((g for g in known if g.state == GenerationState.LIVE), None)
        self._check_pool(live)
        self._check_others()
        if live is not None and self._request.asks_for(live) and not _staged(known):
            self._check_expected(known, live)
            row = self._ledger.rollouts.get(live.endpoint, live.number)
            if row is not None and row.state.active:
                row = self._walk(row)
            self._finish(live)
            return self._result(live, previous=0, smoke=None, rollout=row)
        staged = self._append(known, live)
        previous = 0 if live is None else live.number
        row, smoke = self._ledger.rollouts.get(staged.endpoint, staged.number), None
        if row is None:
            smoke = self._prove_or_fail(staged)
            row = self._begin(staged, previous, known)
        if row is not None:
            row = self._walk(row)
        else:
            self._stage.set_state(staged, GenerationState.LIVE, former=GenerationState.WARM)
            point("deploy.live")
            self._finish(staged)
        return self._result(staged, previous=previous, smoke=smoke, rollout=row)

    def _check_pool(self, live: Generation | None) -> None:
        if live is not None and (live.pool, live.site) != (self._request.pool, self._site.name):
            raise UsageError(
                f"endpoint {live.endpoint!r} lives in pool {live.pool!r} of site {live.site!r}, "
                f"not in {self._request.pool!r} of {self._site.name!r}",
                hint="give the new pool another endpoint name",
            )

    def _check_expected(self, known: tuple[Generation, ...], live: Generation) -> None:
        """What is asked for is live: the repeated command names the generation before it, or this one; another never was seen."""
        expected = self._request.expected
        if expected not in (None, before(known, live), live.number):
            raise Conflict(
                f"endpoint {live.endpoint!r} is at generation {live.number}, not {expected}",
                hint="someone else changed it; look at the endpoint, then repeat the command",
                details={"live": live.number, "expected": expected},
            )

    def _check_others(self) -> None:
        """Somebody else's rollout is not swept away: whoever paused it may have a reason."""
        active = self._ledger.rollouts.active(self._request.endpoint)
        if active is None or _under_way(self._ledger, self._request) is not None:
            return
        raise Conflict(
            f"generation {active.generation} of {active.endpoint!r} is being rolled out by {active.actor}"
            f" ({active.state}, {active.weight} %)",
            hint=f"wait for it, or `orchestrate rollout abort --endpoint {active.endpoint}`, then repeat the command",
            details={"endpoint": active.endpoint, "staged": active.generation, "live": active.stable},
        )

    def _append(self, known: tuple[Generation, ...], live: Generation | None) -> Generation:
        """Append the generation, or find the one that a killed deploy of the same request left staged."""
        asked = self._request
        settled = max((g.number for g in known if g.state != GenerationState.STAGED), default=0)
        wanted = asked.for_ledger(self._site.name, live=live.number if live else 0, settled=settled)
        left = _staged(known)
        if left is not None and left.request_id != wanted.request_id and not self._goes_on(left):
            # Its deploy is dead or fenced, since the lease is ours.
            error = {"error": "Superseded", "message": f"left behind; {asked.actor} deployed {asked.bundle}"}
            self._stage.set_state(left, GenerationState.FAILED, error=error)
            left = None
        if left is not None and self._goes_on(left):
            return left
        if left is None:
            make_room(self._ledger, self._site, self._stage, asked, live)
        staged = self._ledger.generations.append(wanted, self._lease)
        point("deploy.appended")
        return staged

    def _goes_on(self, left: Generation) -> bool:
        """Tell whether a staged generation is what is asked for and has a rollout: whoever asks, it goes on."""
        return self._request.asks_for(left) and self._ledger.rollouts.get(left.endpoint, left.number) is not None

    def _prove_or_fail(self, staged: Generation) -> SmokeReport:
        try:
            return self._prove(staged)
        except (GateError, IntegrityError, ServingError) as error:
            self._stage.fail(staged, error)
            raise

    def _prove(self, staged: Generation) -> SmokeReport:
        version = self._stage.publish()
        point("deploy.staged")
        self._stage.wait_ready(staged, version, self._request.ready_timeout_s)
        point("deploy.ready")
        self._tell(f"generation {staged.number}: golden samples through the router")
        asked = self._request
        smoke = smoke_test(self._site, staged, asked.thresholds, saturating=asked.saturating, alive=self._stage.renew)
        subject = f"{staged.endpoint}/{staged.number}"
        self._ledger.audit.append(asked.actor, "rollout.smoke", subject, {"report": smoke.to_json()})
        point("deploy.smoked")
        return smoke

    def _begin(self, staged: Generation, stable: int, known: tuple[Generation, ...]) -> Rollout | None:
        """Begin the walk; None where there is nothing to walk: with nothing live only the approvals count."""
        strategy, asked = self._request.strategy, self._request
        walks = bool(strategy.steps) or strategy.analysis is not None
        if not strategy.approvals and not (walks and stable):
            return None
        flips = self._flips(known)
        row = Rollout(
            endpoint=staged.endpoint,
            generation=staged.number,
            site=staged.site,
            pool=staged.pool,
            stable=stable,
            strategy=strategy.to_json(),
            step=0 if stable else len(strategy.steps),
            actor=asked.actor,
            reason=asked.reason,
        )
        begun = self._ledger.rollouts.begin(row, self._lease)
        point("rollout.begun")
        if flips < _MOST_FLIPS:
            return begun
        return self._hold(begun, f"this bundle was taken back {flips} times; look why, then resume or abort")

    def _hold(self, row: Rollout, text: str) -> Rollout:
        waiting = {"kind": "operator", "text": text, "since": self._pace.now()}
        return self._ledger.rollouts.save(replace(row, state=RolloutState.PAUSED, waiting=waiting), self._lease)

    def _flips(self, known: tuple[Generation, ...]) -> int:
        """Count how often the same build was taken back by itself, without anything else in between."""
        flips = 0
        for generation in sorted(known, key=lambda g: -g.number):
            row = self._ledger.rollouts.get(generation.endpoint, generation.number)
            if not self._request.asks_for(generation) or row is None or not (row.error or {}).get("automatic"):
                break
            flips += 1
        return flips

    def _walk(self, row: Rollout) -> Rollout:
        return Controller(self._ledger, self._site, row, self._lease, tell=self._tell, pace=self._pace).run()

    def _finish(self, live: Generation) -> None:
        asked = self._request
        self._stage.finish(live, ready_timeout_s=asked.ready_timeout_s, drain_timeout_s=asked.drain_timeout_s)

    def _result(
        self, live: Generation, *, previous: int, smoke: SmokeReport | None, rollout: Rollout | None
    ) -> Deployed:
        url = f"{self._site.url}/v2/models/{live.endpoint}"
        return Deployed(live.endpoint, live.number, live.bundle, live.pool, live.device, url, previous, smoke, rollout)


def _staged(known: tuple[Generation, ...]) -> Generation | None:
    return next((g for g in known if g.state == GenerationState.STAGED), None)
