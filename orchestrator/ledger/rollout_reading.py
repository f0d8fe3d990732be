"""Rows of rollouts read, found and refused, inside running transactions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, select

from orchestrator.core.errors import Conflict, LedgerError
from orchestrator.ledger.rollout_rows import Rollout, RolloutState
from orchestrator.ledger.rollout_schema import rollouts
from orchestrator.ledger.rows import GenerationState, values_of
from orchestrator.ledger.schema import generations

ACTIVE: Final = rollouts.c.state.in_([state.value for state in RolloutState if state.active])


def active_in(connection: Connection, endpoint: str) -> Rollout | None:
    """Return the active rollout of an endpoint, inside a running transaction."""
    query = select(rollouts).where(ACTIVE & (rollouts.c.endpoint == endpoint))
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else read_row(dict(row))


def active_by_endpoint(connection: Connection, site: str) -> dict[str, Rollout]:
    """Return the active rollouts of a site by endpoint, inside a running transaction."""
    rows = connection.execute(select(rollouts).where(ACTIVE & (rollouts.c.site == site))).mappings()
    return {found.endpoint: found for found in (read_row(dict(row)) for row in rows)}


def get_in(connection: Connection, endpoint: str, generation: int) -> Rollout | None:
    """Return a rollout, inside a running transaction."""
    found = (rollouts.c.endpoint == endpoint) & (rollouts.c.generation == generation)
    row = connection.execute(select(rollouts).where(found)).mappings().one_or_none()
    return None if row is None else read_row(dict(row))


def must_in(connection: Connection, endpoint: str, generation: int) -> Rollout:
    """Return a rollout that has to be there."""
    found = get_in(connection, endpoint, generation)
    if found is None:
        raise LedgerError(
            f"generation {generation} of endpoint {endpoint!r} has no rollout",
            hint="look at `orchestrate rollout history`",
        )
    return found


def check_staged(connection: Connection, rollout: Rollout) -> None:
    """Refuse to roll out what has failed meanwhile, or serves already."""
    found = (generations.c.endpoint == rollout.endpoint) & (generations.c.number == rollout.generation)
    state = connection.execute(select(generations.c.state).where(found)).scalar_one_or_none()
    if state is not None and state != GenerationState.STAGED.value:
        raise Conflict(
            f"generation {rollout.generation} of {rollout.endpoint!r} is {state}, there is nothing to roll out",
            hint="someone else was faster; look at the endpoint's generations",
            details={"endpoint": rollout.endpoint, "generation": rollout.generation, "state": state},
        )


def here(rollout: Rollout) -> Any:
    """Return the condition that finds the row of a rollout."""
    return (rollouts.c.endpoint == rollout.endpoint) & (rollouts.c.generation == rollout.generation)


def row_values(rollout: Rollout) -> dict[str, Any]:
    """Return what is stored of a rollout, by column."""
    values = values_of(rollout)
    return {
        **values,
        "state": rollout.state.value,
        "headers": list(rollout.headers),
        "approvals": list(rollout.approvals),
    }


def read_row(values: Mapping[Any, Any]) -> Rollout:
    """Return a stored rollout."""
    fields: dict[str, Any] = {
        **values,
        "state": RolloutState(values["state"]),
        "headers": tuple(values["headers"]),
        "approvals": tuple(values["approvals"]),
    }
    return Rollout(**fields)


def subject(rollout: Rollout) -> str:
    """Return how the audit log names a rollout."""
    return f"{rollout.endpoint}/{rollout.generation}"


def busy(active: Rollout) -> Conflict:
    """Return the refusal where another rollout is active."""
    return Conflict(
        f"generation {active.generation} of {active.endpoint!r} is being rolled out by {active.actor} ({active.state})",
        hint="wait for it, or `orchestrate rollout abort`",
        details={"endpoint": active.endpoint, "active": active.generation, "live": active.stable},
    )


def ended(known: Rollout) -> Conflict:
    """Return the refusal where a rollout has ended."""
    return Conflict(
        f"the rollout of generation {known.generation} of {known.endpoint!r} has {known.state}",
        hint="look at `orchestrate rollout history`; start another one",
        details={"endpoint": known.endpoint, "generation": known.generation, "state": known.state.value},
    )
