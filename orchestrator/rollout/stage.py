"""Placing generations on a site: publish, wait until ready, let former ones end. Every part may be repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.core.errors import OrchestratorError, ServingError, Unreachable
from orchestrator.core.faults import point
from orchestrator.ledger import Generation, GenerationState, Lease, Ledger
from orchestrator.rollout.readiness import busy, counters, readiness
from orchestrator.rollout.reconcile import publish
from orchestrator.rollout.site import Site

TTL_S: Final = 60.0
_POLL_S: Final = 0.1
_QUICK_POLL_S: Final = 0.01


def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class Pace:
    """Time, so that tests can have their own; `alive` is called while something is waited for, and may raise."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    alive: Callable[[], None] = _nothing


class Stage:
    """What the holder of an endpoint's lease does at its site.

    Args:
        ledger: The serve site's ledger.
        site: Where.
        lease: Ours; every write and every table of a fenced one is refused.
        actor: Whom the audit names.
        tell: Hears one line where people wait.
        pace: Sleep, and whom to show that we are alive.
    """

    def __init__(
        self,
        ledger: Ledger,
        site: Site,
        lease: Lease,
        *,
        actor: str,
        tell: Callable[[str], None],
        pace: Pace | None = None,
    ) -> None:
        self._ledger = ledger
        self._site = site
        self._lease = lease
        self._actor = actor
        self._tell = tell
        self._pace = pace or Pace()
        self._renewed = time.monotonic()

    def publish(self) -> int:
        """Make the router show what the ledger says; returns the table's version."""
        return publish(self._ledger, self._site, self._lease).version

    def set_state(
        self,
        generation: Generation,
        state: GenerationState,
        *,
        error: Mapping[str, Any] | None = None,
        former: GenerationState = GenerationState.DRAINING,
    ) -> None:
        """Move a generation on."""
        self._ledger.generations.set_state(
            generation.endpoint, generation.number, state, self._lease, actor=self._actor, error=error, former=former
        )

    def wait_ready(self, generation: Generation, version: int, timeout_s: float, *, proven: bool = False) -> None:
        """Return when its replicas are ready.

        Args:
            generation: Which.
            version: The table that placed it.
            timeout_s: How long they may take.
            proven: All were ready once: where one has failed since, its device is to blame, and it is enough that others serve.

        Raises:
            ServingError: A replica failed, or time is up.
        """
        deadline = time.monotonic() + timeout_s
        slots = self._ledger.generations.slots(generation.endpoint)
        said = ""
        while True:
            status = self._site.status()
            found = readiness(status, generation, version, slots)
            if found.ready:
                return
            what = f"generation {generation.number} of {generation.endpoint!r}"
            if found.failure and proven and counters(status, generation).get("ready", 0):
                self._tell(f"generation {generation.number}: {found.failure.splitlines()[0]}; its other replicas serve")
                return
            if found.failure:
                raise ServingError(
                    f"{what} cannot be served: {found.failure}",
                    hint="fix the bundle or the pool, then repeat the command",
                    details={"endpoint": generation.endpoint, "generation": generation.number},
                )
            if time.monotonic() >= deadline:
                raise ServingError(
                    f"{what} was not ready after {timeout_s:g} s: {found.text}",
                    hint="look at `orchestrate site status` and the agent's log",
                )
            if found.text != said:
                said = found.text
                self._tell(f"generation {generation.number}: {said}")
            self.pause(_POLL_S)

    def finish(self, live: Generation, *, ready_timeout_s: float = 120.0, drain_timeout_s: float = 30.0) -> None:
        """Show that a generation is live, and let the former ones end."""
        version = self.publish()
        point("deploy.switched")
        self.wait_ready(live, version, ready_timeout_s, proven=True)
        self.end_former(live.endpoint, drain_timeout_s)

    def end_former(self, endpoint: str, drain_timeout_s: float) -> None:
        """Retire the generations that drain once what they hold is answered, or the time is over."""
        former = [g for g in self._ledger.generations.list(endpoint) if g.state == GenerationState.DRAINING]
        if not former:
            return
        self._tell(f"draining generation {', '.join(str(g.number) for g in former)} of {endpoint!r}")
        self._drain(former, drain_timeout_s)
        point("deploy.drained")
        for generation in former:
            self.set_state(generation, GenerationState.RETIRED)
        point("deploy.retired")
        self.publish()
        point("deploy.published")

    def fail(self, staged: Generation, error: OrchestratorError | Mapping[str, Any]) -> None:
        """Give a staged generation up: the ledger first, then the table without it."""
        body = error.to_json() if isinstance(error, OrchestratorError) else error
        self.set_state(staged, GenerationState.FAILED, error=body)
        point("deploy.failed")
        try:
            self.publish()
        except Unreachable:
            return  # the caller hears why it failed; the next publish takes it out of the table

    def pause(self, seconds: float) -> None:
        """Wait, and keep the lease."""
        self.renew()
        self._pace.alive()
        self._pace.sleep(seconds)

    def renew(self) -> None:
        """Keep the lease; a look at the clock where there is time yet."""
        if time.monotonic() - self._renewed > TTL_S / 4:
            self._ledger.leases.renew(self._lease, ttl_s=TTL_S)
            self._renewed = time.monotonic()

    def _drain(self, former: list[Generation], timeout_s: float) -> None:
        began = time.monotonic()
        while (spent_s := time.monotonic() - began) < timeout_s:
            status = self._site.status()
            if not any(busy(status, generation) for generation in former):
                return
            self.pause(_QUICK_POLL_S if spent_s < 1 else _POLL_S)
