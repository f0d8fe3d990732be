"""Leading and following: one controller at a time drives a rollout, others wait for what it comes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from orchestrator.core.errors import Conflict, UsageError
from orchestrator.ledger import Holder, Ledger, Owner, Rollout
from orchestrator.rollout.controller import Controller
from orchestrator.rollout.site import Site
from orchestrator.rollout.stage import TTL_S, Pace
from orchestrator.rollout.telling import outcome

_POLL_S: Final = 0.2


def drive(
    ledger: Ledger,
    site: Site,
    endpoint: str,
    owner: Owner,
    *,
    generation: int | None = None,
    stay: bool = False,
    tell: Callable[[str], None] | None = None,
    on_wait: Callable[[Holder], None] | None = None,
    pace: Pace | None = None,
) -> Rollout:
    """Drive the rollout of an endpoint to its end; where another living controller leads, follow what it does.

    Args:
        ledger: The serve site's ledger.
        site: The endpoint's site.
        endpoint: Its name.
        owner: Who drives.
        generation: Which rollout; None = the one that is under way, else the last.
        stay: Wait for people as well, instead of raising `Waiting`.
        tell: Hears one line per change.
        on_wait: Hears of another controller that is followed.
        pace: Clock and sleep.

    Raises:
        UsageError: There never was a rollout.
        Waiting: It waits for people.
        GateError: The canary was taken back.
        Conflict: Somebody took the lead; nothing was changed since.
        Unreachable: The router did not answer for long; nothing is decided.
    """
    pace = pace or Pace(now=ledger.now)
    while True:
        row = _row(ledger, endpoint, generation)
        try:
            lease = ledger.leases.acquire(f"endpoint/{endpoint}", owner, ttl_s=TTL_S)
        except Conflict:
            ended = follow(ledger, row, on_wait=on_wait, pace=pace)
            if ended is not None:
                return outcome(ended)
            continue
        try:
            row = _row(ledger, endpoint, row.generation)
            return Controller(ledger, site, row, lease, tell=tell or _silent, pace=pace).run(stay=stay)
        finally:
            ledger.leases.release(lease)


def follow(
    ledger: Ledger, row: Rollout, *, on_wait: Callable[[Holder], None] | None = None, pace: Pace
) -> Rollout | None:
    """Wait while another leads; returns the rollout when it has ended, None when nobody leads any more."""
    told = False
    while True:
        found = ledger.rollouts.get(row.endpoint, row.generation)
        holder = ledger.leases.holder(f"endpoint/{row.endpoint}")
        if holder is None or holder.owner.surely_dead() or holder.expires_at <= ledger.now():
            return None
        if found is not None and found.ended_at is not None:
            return found
        if on_wait is not None and not told:
            told = True
            on_wait(holder)
        pace.alive()
        pace.sleep(_POLL_S)


def _row(ledger: Ledger, endpoint: str, generation: int | None) -> Rollout:
    if generation is None:
        found = ledger.rollouts.active(endpoint) or next(reversed(ledger.rollouts.list(endpoint)), None)
    else:
        found = ledger.rollouts.get(endpoint, generation)
    if found is None:
        raise UsageError(f"nothing is being rolled out at endpoint {endpoint!r}", hint="orchestrate endpoint list")
    return found


def _silent(_text: str) -> None:
    return
