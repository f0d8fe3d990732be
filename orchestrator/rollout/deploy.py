"""Deploy: from a bundle on disk to the live generation of an endpoint. Kill it anywhere, run it again, same end.

    append staged -> publish beside the old -> replicas ready -> smoke test -> commit live -> publish -> drain -> retire

The ledger decides and the table follows: a crash between the two is healed by the next publish. Until the commit the
old generation serves untouched; after it the switch is one write at the router, and the old one drains.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from orchestrator.core.errors import GateError, IntegrityError, OrchestratorError, ServingError, Unreachable, UsageError
from orchestrator.core.faults import point
from orchestrator.core.ids import check_name
from orchestrator.ledger import Generation, GenerationState, Holder, Lease, Ledger, Owner
from orchestrator.rollout.readiness import busy, readiness
from orchestrator.rollout.reconcile import publish
from orchestrator.rollout.request import Deployed, DeployRequest
from orchestrator.rollout.site import Site
from orchestrator.rollout.smoke import SmokeReport, smoke_test

_TTL_S: Final = 60.0
_POLL_S: Final = 0.1


def deploy(
    ledger: Ledger,
    site: Site,
    request: DeployRequest,
    owner: Owner,
    *,
    on_wait: Callable[[Holder], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Deployed:
    """Make a bundle the live generation of an endpoint, or leave everything as it was.

    Args:
        ledger: The serve site's ledger.
        site: Where to serve.
        request: What to serve.
        owner: Who asks; the same command by anyone finishes what a killed one began.
        on_wait: Hears of another rollout of this endpoint that is waited for.
        tell: Hears one line per stage.

    Raises:
        Conflict: Another rollout holds the endpoint, another generation is live than expected, or fenced.
        GateError: The smoke test said no; the generation is `failed`, the old one is untouched.
        ServingError: The replicas did not get ready; likewise.
        Unreachable: The router did not answer; nothing is decided, the same command goes on.
    """
    name = f"endpoint/{check_name(request.endpoint, 'endpoint')}"
    with ledger.leases.held(name, owner, ttl_s=_TTL_S, wait_s=request.wait_s, on_wait=on_wait) as lease:
        return _Walk(ledger, site, request, lease, tell or _silent).go()


def _silent(_text: str) -> None:
    return


class _Walk:
    """One walk, by the holder of the endpoint's lease."""

    def __init__(
        self, ledger: Ledger, site: Site, request: DeployRequest, lease: Lease, tell: Callable[[str], None]
    ) -> None:
        self._ledger = ledger
        self._site = site
        self._request = request
        self._lease = lease
        self._tell = tell
        self._renewed = time.monotonic()

    def go(self) -> Deployed:
        known = self._ledger.generations.list(self._request.endpoint)
        live = next((g for g in known if g.state == GenerationState.LIVE), None)
        self._check_pool(live)
        if live is not None and self._is_wanted(live):
            self._finish(live)
            return self._result(live, previous=0, smoke=None)
        staged = self._append(known, live)
        try:
            smoke = self._prove(staged)
        except (GateError, IntegrityError, ServingError) as error:
            self._fail(staged, error)
            raise
        self._set(staged, GenerationState.LIVE)
        point("deploy.live")
        self._finish(staged)
        return self._result(staged, previous=0 if live is None else live.number, smoke=smoke)

    def _check_pool(self, live: Generation | None) -> None:
        if live is not None and (live.pool, live.site) != (self._request.pool, self._site.name):
            raise UsageError(
                f"endpoint {live.endpoint!r} lives in pool {live.pool!r} of site {live.site!r}, "
                f"not in {self._request.pool!r} of {self._site.name!r}",
                hint="give the new pool another endpoint name",
            )

    def _is_wanted(self, live: Generation) -> bool:
        asked = self._request
        same = (live.bundle, live.variant, live.runtime, live.device) == (
            asked.bundle,
            asked.variant,
            asked.runtime,
            asked.device,
        )
        return same and [b["variant"] for b in live.builds] == [b["variant"] for b in asked.builds]

    def _append(self, known: tuple[Generation, ...], live: Generation | None) -> Generation:
        """Append the generation, or find the one that a killed deploy of the same request left staged."""
        asked = self._request
        settled = max((g.number for g in known if g.state != GenerationState.STAGED), default=0)
        wanted = asked.for_ledger(self._site.name, live=live.number if live else 0, settled=settled)
        for left in known:
            if left.state == GenerationState.STAGED and left.request_id != wanted.request_id:
                # Its deploy is dead or fenced, since the lease is ours.
                error = {"error": "Superseded", "message": f"left behind; {asked.actor} deployed {asked.bundle}"}
                self._set(left, GenerationState.FAILED, error)
        staged = self._ledger.generations.append(wanted, self._lease)
        point("deploy.appended")
        return staged

    def _prove(self, staged: Generation) -> SmokeReport:
        version = publish(self._ledger, self._site, self._lease).version
        point("deploy.staged")
        self._wait_ready(staged, version)
        point("deploy.ready")
        self._tell(f"generation {staged.number}: golden samples through the router")
        asked = self._request
        smoke = smoke_test(self._site, staged, asked.thresholds, saturating=asked.saturating, alive=self._renew)
        subject = f"{staged.endpoint}/{staged.number}"
        self._ledger.audit.append(asked.actor, "rollout.smoke", subject, {"report": smoke.to_json()})
        point("deploy.smoked")
        return smoke

    def _finish(self, live: Generation) -> None:
        """Make the router show what the ledger has decided, and let the former generations end. Idempotent."""
        version = publish(self._ledger, self._site, self._lease).version
        point("deploy.switched")
        self._wait_ready(live, version)
        known = self._ledger.generations.list(live.endpoint)
        former = [g for g in known if g.state == GenerationState.DRAINING]
        if not former:
            return
        self._tell(f"generation {live.number} is live; draining {', '.join(str(g.number) for g in former)}")
        self._drain(former)
        point("deploy.drained")
        for generation in former:
            self._set(generation, GenerationState.RETIRED)
        point("deploy.retired")
        publish(self._ledger, self._site, self._lease)
        point("deploy.published")

    def _wait_ready(self, generation: Generation, version: int) -> None:
        deadline = time.monotonic() + self._request.ready_timeout_s
        slots = self._ledger.generations.slots(generation.endpoint)
        said = ""
        while True:
            found = readiness(self._site.status(), generation, version, slots)
            if found.ready:
                return
            what = f"generation {generation.number} of {generation.endpoint!r}"
            if found.failure:
                raise ServingError(
                    f"{what} cannot be served: {found.failure}",
                    hint="fix the bundle or the pool, then repeat the command",
                    details={"endpoint": generation.endpoint, "generation": generation.number},
                )
            if time.monotonic() >= deadline:
                raise ServingError(
                    f"{what} was not ready after {self._request.ready_timeout_s:g} s: {found.text}",
                    hint="look at `orchestrate site status` and the agent's log",
                )
            if found.text != said:
                said = found.text
                self._tell(f"generation {generation.number}: {said}")
            self._pause()

    def _drain(self, former: list[Generation]) -> None:
        deadline = time.monotonic() + self._request.drain_timeout_s
        while time.monotonic() < deadline:
            status = self._site.status()
            if not any(busy(status, generation) for generation in former):
                return
            self._pause()

    def _fail(self, staged: Generation, error: OrchestratorError) -> None:
        """Give up before the switch: the ledger first, then the table without the failed generation."""
        self._set(staged, GenerationState.FAILED, error.to_json())
        point("deploy.failed")
        try:
            publish(self._ledger, self._site, self._lease)
        except Unreachable:
            return  # the caller hears why the deploy failed; the next publish takes it out of the table

    def _set(self, generation: Generation, state: GenerationState, error: Mapping[str, Any] | None = None) -> None:
        actor = self._request.actor
        self._ledger.generations.set_state(
            generation.endpoint, generation.number, state, self._lease, actor=actor, error=error
        )

    def _pause(self) -> None:
        self._renew()
        time.sleep(_POLL_S)

    def _renew(self) -> None:
        if time.monotonic() - self._renewed > _TTL_S / 4:
            self._ledger.leases.renew(self._lease, ttl_s=_TTL_S)
            self._renewed = time.monotonic()

    def _result(self, live: Generation, *, previous: int, smoke: SmokeReport | None) -> Deployed:
        url = f"{self._site.url}/v2/models/{live.endpoint}"
        return Deployed(live.endpoint, live.number, live.bundle, live.pool, live.device, url, previous, smoke)
