"""`endpoint scale` and `endpoint delete`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.app.serve_site import connect
from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import UsageError
from orchestrator.ledger import Ledger, Owner
from orchestrator.ledger.rows import user_name
from orchestrator.recipe.problems import did_you_mean
from orchestrator.rollout import scale


def scale_endpoint(
    workplace: Workplace, endpoint: str, slots: str, expected: int | None, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Give an endpoint so many slots of its pool.

    Args:
        workplace: Where it lives.
        endpoint: Its name.
        slots: A number, or `all`.
        expected: Slots that it takes now, 0 = all; anything else is a conflict. None = whatever it is.
        tell: Hears how far it is.

    Returns:
        `{endpoint, pool, slots, was, changed}`; None stands for all slots of the pool.

    Raises:
        UsageError: Nothing is live under that name, or the pool has not so many slots.
    """
    wanted = _number(slots)
    with workplace.open_ledger() as ledger:
        site, pool = _home(ledger, endpoint)
        found = workplace.environment.pools.get(pool)
        if found is not None and wanted is not None and wanted > found.all_slots:
            raise UsageError(
                f"{wanted} slots are asked for, the pool {pool!r} has {found.all_slots}",
                hint=f"ask for at most {found.all_slots}, or give the pool more `slots` in the environment",
            )
        request = scale.ScaleRequest(endpoint, wanted, user_name(), expected)
        done = scale.scale(ledger, connect(workplace, site), request, Owner.here(f"scale {endpoint}"), tell=tell)
    return {"endpoint": endpoint, "pool": pool, "slots": done.slots, "was": done.was, "changed": done.changed}


def delete_endpoint(workplace: Workplace, endpoint: str) -> dict[str, Any]:
    """Take an endpoint out of service once what it holds is answered; `{endpoint, pool, generations, deleted}`.

    Raises:
        UsageError: There never was one of that name.
    """
    with workplace.open_ledger() as ledger:
        site, pool = _home(ledger, endpoint)
        owner = Owner.here(f"delete {endpoint}")
        done = scale.delete(ledger, connect(workplace, site), endpoint, owner, actor=user_name())
    return {
        "endpoint": endpoint,
        "pool": pool,
        "generations": list(done.generations),
        "deleted": bool(done.generations),
    }


def _home(ledger: Ledger, endpoint: str) -> tuple[str, str]:
    """Return the site and the pool of an endpoint."""
    known = ledger.generations.list(endpoint)
    if not known:
        names = ledger.generations.endpoints()
        near = did_you_mean(endpoint, names).strip(" ()")
        hint = f"{near[:1].upper()}{near[1:]}" if near else "nothing has been deployed yet"
        raise UsageError(f"there is no endpoint {endpoint!r}", hint=hint)
    return known[-1].site, known[-1].pool


def _number(slots: str) -> int | None:
    if slots == "all":
        return None
    if not (slots.isascii() and slots.isdigit() and 0 < int(slots) <= 1024):
        raise UsageError(
            f"--slots {slots!r} is no number of slots",
            hint="give 1 to 1024, or `all`; to take the endpoint out of service: `orchestrate endpoint delete`",
        )
    return int(slots)
