"""Carrying a rollout on after an operator has spoken: drive it, or see that whoever drives it has heard."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import Waiting

if TYPE_CHECKING:
    from orchestrator.ledger import Holder, Ledger

_HEARD_S: Final = 10.0
_POLL_S: Final = 0.1


def carry_on(
    workplace: Workplace,
    endpoint: str,
    generation: int,
    tell: Callable[[str], None],
    on_wait: Callable[[Holder], None] | None = None,
) -> dict[str, Any]:
    """Drive a rollout to its end, or follow whoever does.

    Returns:
        `{endpoint, generation, state, step, weight, verdict}` of the ended rollout.

    Raises:
        Waiting: It waits for people.
        GateError: The canary was taken back.
        Conflict: Somebody took the lead.
        Unreachable: The router does not answer.
    """
    from orchestrator.app.serve_site import connect
    from orchestrator.ledger import Owner
    from orchestrator.rollout.lead import drive

    with workplace.open_ledger() as ledger:
        row = ledger.rollouts.get(endpoint, generation)
        site = connect(workplace, row.site if row is not None else "")
        owner = Owner.here(f"rollout {endpoint}")
        row = drive(ledger, site, endpoint, owner, generation=generation, tell=tell, on_wait=on_wait)
        return {
            "endpoint": row.endpoint,
            "generation": row.generation,
            "state": row.state.value,
            "step": row.step,
            "weight": row.weight,
            "verdict": row.verdict,
        }


def heard(workplace: Workplace, endpoint: str, generation: int, tell: Callable[[str], None]) -> str:
    """Return the state of a rollout once the wish is carried out: by whoever leads it, else by us.

    Raises:
        GateError: The canary was taken back.
        Unreachable: The router does not answer.
    """
    deadline = time.monotonic() + _HEARD_S
    while time.monotonic() < deadline:
        with workplace.open_ledger() as ledger:
            row = ledger.rollouts.get(endpoint, generation)
            if row is None or not row.intent or row.ended_at is not None:
                return row.state.value if row is not None else ""
            led = leader(ledger, endpoint)
        if led is None:
            try:
                return str(carry_on(workplace, endpoint, generation, tell)["state"])
            except Waiting:
                return "paused"
        time.sleep(_POLL_S)
    return "asked"


def leader(ledger: Ledger, endpoint: str) -> Holder | None:
    """Return the living controller of an endpoint's rollout; None where nobody leads."""
    holder = ledger.leases.holder(f"endpoint/{endpoint}")
    if holder is None or holder.owner.surely_dead() or holder.expires_at <= ledger.now():
        return None
    return holder
