"""`endpoint scale` and `endpoint delete`: how many slots an endpoint takes, down to none. Kill it anywhere, run it again, same end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from orchestrator.core.errors import Conflict, ServingError, UsageError
from orchestrator.core.faults import point
from orchestrator.ledger import Generation, GenerationState, Lease, Ledger, Owner
from orchestrator.rollout.readiness import busy, readiness
from orchestrator.rollout.reconcile import publish
from orchestrator.rollout.site import Site

_TTL_S: Final = 60.0
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class ScaleRequest:
    """How many slots an endpoint shall take.

    Attributes:
        slots: None = all that the pool has.
        expected: What the caller believes it takes now, 0 = all; None = whatever it is.
        timeout_s: How long new replicas may take to load.
    """

    endpoint: str
    slots: int | None
    actor: str
    expected: int | None = None
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Scaled:
    """What a scale did; `was` and `slots` are None for all slots of the pool."""

    endpoint: str
    slots: int | None
    was: int | None
    changed: bool


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a delete did; no generations: it was deleted already."""

    endpoint: str
    generations: tuple[int, ...]


def scale(ledger: Ledger, site: Site, request: ScaleRequest, owner: Owner, *, tell: Callable[[str], None]) -> Scaled:
    """Give an endpoint more or fewer slots and wait until they serve.

    Raises:
        UsageError: Nothing is live under that name.
        Conflict: A rollout holds the endpoint, or it takes another number of slots than expected.
        ServingError: New replicas did not get ready; the ledger keeps the new number, the same command waits again.
    """
    with ledger.leases.held(f"endpoint/{request.endpoint}", owner, ttl_s=_TTL_S, wait_s=0.0) as lease:
        _no_rollout(ledger, request.endpoint)
        live = ledger.generations.live(request.endpoint)
        if live is None:
            raise UsageError(
                f"no generation of endpoint {request.endpoint!r} is live", hint="deploy it first: `orchestrate run`"
            )
        was = ledger.generations.slots(request.endpoint)
        if request.expected is not None and request.expected != (was or 0):
            raise Conflict(
                f"endpoint {request.endpoint!r} takes {was or 'all'} slots, not {request.expected or 'all'}",
                hint="someone else changed it; look at the endpoint, then repeat the command",
                details={"slots": was, "expected": request.expected},
            )
        changed = ledger.generations.set_slots(request.endpoint, request.slots, lease, actor=request.actor)
        point("scale.recorded")
        version = publish(ledger, site, lease).version
        point("scale.published")
        _wait_ready(ledger, site, live, version, request, lease, tell)
        return Scaled(request.endpoint, request.slots, was, changed)


def _wait_ready(
    ledger: Ledger,
    site: Site,
    live: Generation,
    version: int,
    request: ScaleRequest,
    lease: Lease,
    tell: Callable[[str], None],
) -> None:
    deadline, said = time.monotonic() + request.timeout_s, ""
    renewing = _Renewing(ledger, lease)
    while True:
        found = readiness(site.status(), live, version, request.slots)
        if found.ready:
            return
        if found.failure or time.monotonic() >= deadline:
            raise ServingError(
                f"endpoint {live.endpoint!r} does not serve from {request.slots or 'all'} slots: "
                f"{found.failure or found.text}",
                hint="look at `orchestrate site status` and the agent's log, then repeat the command",
            )
        if found.text != said:
            said = found.text
            tell(said)
        renewing.pause()


def delete(
    ledger: Ledger, site: Site, endpoint: str, owner: Owner, *, actor: str, drain_timeout_s: float = 30.0
) -> Deleted:
    """Take an endpoint out of the table once what it holds is answered; its generations stay in the ledger.

    Raises:
        Conflict: A rollout holds the endpoint.
        Unreachable: The router did not answer; the same command goes on.
    """
    with ledger.leases.held(f"endpoint/{endpoint}", owner, ttl_s=_TTL_S, wait_s=0.0) as lease:
        _no_rollout(ledger, endpoint)
        ending = _end_all(ledger, endpoint, lease, actor)
        point("delete.draining")
        if ending:
            publish(ledger, site, lease)
            point("delete.hidden")
            _drain(ledger, site, ending, lease, drain_timeout_s)
        for generation in ending:
            ledger.generations.set_state(endpoint, generation.number, GenerationState.RETIRED, lease, actor=actor)
        ledger.generations.set_slots(endpoint, None, lease, actor=actor)
        point("delete.retired")
        publish(ledger, site, lease)
        numbers = tuple(generation.number for generation in ending)
        if numbers:
            ledger.audit.append(actor, "endpoint.delete", endpoint, {"generations": list(numbers)})
        return Deleted(endpoint, numbers)


def _no_rollout(ledger: Ledger, endpoint: str) -> None:
    """Refuse while a rollout is under way, also one that waits for a person and that nobody leads."""
    row = ledger.rollouts.active(endpoint)
    if row is not None:
        raise Conflict(
            f"generation {row.generation} is being rolled out at endpoint {endpoint!r}",
            hint=f"let it end, or take it back first: orchestrate rollout abort --endpoint {endpoint}",
        )


def _end_all(ledger: Ledger, endpoint: str, lease: Lease, actor: str) -> list[Generation]:
    """Give up what is staged and let what is loaded drain; returns all that drains, also what a killed delete left."""
    found: list[Generation] = []
    for generation in ledger.generations.list(endpoint):
        if generation.state == GenerationState.STAGED:
            error = {"error": "Deleted", "message": f"{actor} deleted the endpoint"}
            ledger.generations.set_state(
                endpoint, generation.number, GenerationState.FAILED, lease, actor=actor, error=error
            )
        elif generation.state in (GenerationState.LIVE, GenerationState.WARM):
            found.append(
                ledger.generations.set_state(endpoint, generation.number, GenerationState.DRAINING, lease, actor=actor)
            )
        elif generation.state == GenerationState.DRAINING:
            found.append(generation)
    return found


def _drain(ledger: Ledger, site: Site, ending: list[Generation], lease: Lease, timeout_s: float) -> None:
    deadline, renewing = time.monotonic() + timeout_s, _Renewing(ledger, lease)
    while time.monotonic() < deadline:
        status = site.status()
        if not any(busy(status, generation) for generation in ending):
            return
        renewing.pause()


class _Renewing:
    """Keeps the lease while we wait."""

    def __init__(self, ledger: Ledger, lease: Lease) -> None:
        self._ledger, self._lease = ledger, lease
        self._renewed = time.monotonic()

    def pause(self) -> None:
        if time.monotonic() - self._renewed > _TTL_S / 4:
            self._ledger.leases.renew(self._lease, ttl_s=_TTL_S)
            self._renewed = time.monotonic()
        time.sleep(_POLL_S)
