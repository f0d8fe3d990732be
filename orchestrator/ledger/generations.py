"""Generations of endpoints: compare-and-set appends, numbers that are never reused, one live and one staged at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, delete, select, update

from orchestrator.core.errors import Conflict, LedgerError
from orchestrator.ledger.audit import AuditLog
from orchestrator.ledger.database import Database
from orchestrator.ledger.expectations import asked, compare_live, same
from orchestrator.ledger.leases import fence
from orchestrator.ledger.rollout_reading import active_by_endpoint, active_in
from orchestrator.ledger.rollouts import Rollouts
from orchestrator.ledger.rows import Generation, GenerationRequest, GenerationState, Lease, TableStamp, values_of
from orchestrator.ledger.schema import generations, scales, table_versions

TRANSITIONS: Final[Mapping[GenerationState, frozenset[GenerationState]]] = {
    GenerationState.STAGED: frozenset({GenerationState.LIVE, GenerationState.FAILED}),
    GenerationState.LIVE: frozenset({GenerationState.WARM, GenerationState.DRAINING}),
    GenerationState.WARM: frozenset({GenerationState.DRAINING}),
    GenerationState.DRAINING: frozenset({GenerationState.RETIRED}),
    GenerationState.RETIRED: frozenset(),
    GenerationState.FAILED: frozenset(),
}
"""What may follow what; a rollback is a new generation, so nothing ever comes back."""

ROUTED: Final = frozenset(
    {GenerationState.STAGED, GenerationState.LIVE, GenerationState.WARM, GenerationState.DRAINING}
)
"""States that stand in a routing table."""


class Generations:
    """The truth about what is served."""

    def __init__(self, database: Database, audit: AuditLog, rollouts: Rollouts) -> None:
        self._database = database
        self._audit = audit
        self._rollouts = rollouts

    def append(self, request: GenerationRequest, lease: Lease) -> Generation:
        """Append the next generation, staged. A repeat of the same request id returns the first result.

        Raises:
            Conflict: Fenced; or another generation is live or being rolled out; or the id was used for something else.
        """
        with (
            self._audit.refusals(request.actor, request.endpoint, asked(request)),
            self._database.write() as connection,
        ):
            fence(connection, lease)
            known = _select(connection, request.endpoint)
            for earlier in known:
                if earlier.request_id == request.request_id:
                    return same(earlier, request)
            self._compare(connection, known, request)
            return self._insert(connection, known, request, GenerationState.STAGED)

    def roll_back(self, request: GenerationRequest, lease: Lease) -> Generation:
        """Append the next generation, live at once: what it names has served before, so nothing is left to prove.

        The live one drains, one that is staged has failed, and the rollout that was under way is aborted, in the same
        transaction. A repeat of the same request id returns the first result.

        Raises:
            Conflict: Fenced; or another generation is live; or the id was used for something else.
        """
        with (
            self._audit.refusals(request.actor, request.endpoint, asked(request)),
            self._database.write() as connection,
        ):
            fence(connection, lease)
            known = _select(connection, request.endpoint)
            for earlier in known:
                if earlier.request_id == request.request_id:
                    return same(earlier, request)
            compare_live(known, request)
            over = {"error": "RolledBack", "message": f"{request.actor} rolled the endpoint back: {request.reason}"}
            self._rollouts.end_in(connection, request.endpoint, over, request.actor)
            for other in known:
                if other.state == GenerationState.STAGED:
                    self._move(connection, other, GenerationState.FAILED, request.actor, over)
                elif other.state in (GenerationState.LIVE, GenerationState.WARM):
                    self._move(connection, other, GenerationState.DRAINING, request.actor, None)
            return self._insert(connection, known, request, GenerationState.LIVE)

    def _insert(
        self,
        connection: Connection,
        known: tuple[Generation, ...],
        request: GenerationRequest,
        state: GenerationState,
    ) -> Generation:
        now = self._database.now(connection)
        fields = {name: value for name, value in values_of(request).items() if name != "expected"}
        made = Generation(
            **fields,
            number=1 + max((g.number for g in known), default=0),
            state=state,
            error=None,
            created_at=now,
            changed_at=now,
        )
        connection.execute(generations.insert().values(values_of(made)))
        detail = {"expected": request.expected, "request_id": request.request_id, "reason": request.reason}
        self._record(connection, made, request.actor, f"generation.{request.kind}", detail | {"state": state.value})
        return made

    def set_state(
        self,
        endpoint: str,
        number: int,
        state: GenerationState,
        lease: Lease,
        *,
        actor: str,
        error: Mapping[str, Any] | None = None,
        former: GenerationState = GenerationState.DRAINING,
    ) -> Generation:
        """Move a generation on. Idempotent.

        Going live moves the live one to `former` in the same transaction, and one that was warm before it to draining. A
        rollout whose generation has failed is aborted with it.

        Raises:
            Conflict: Fenced, or the move is not in `TRANSITIONS`.
            LedgerError: There is no such generation.
        """
        wanted = {"state": state.value}
        with self._audit.refusals(actor, f"{endpoint}/{number}", wanted), self._database.write() as connection:
            fence(connection, lease)
            known = {g.number: g for g in _select(connection, endpoint)}
            if number not in known:
                raise LedgerError(f"endpoint {endpoint!r} has no generation {number}", hint="list the endpoints")
            current = known[number]
            if current.state == state:
                return current
            if state == GenerationState.LIVE:
                over = {"error": "Superseded", "message": f"generation {number} went live"}
                self._rollouts.end_in(connection, endpoint, over, actor, other_than=number)
                for other in known.values():
                    if other.state == GenerationState.WARM:
                        self._move(connection, other, GenerationState.DRAINING, actor, None)
                    elif other.state == GenerationState.LIVE:
                        self._move(connection, other, former, actor, None)
            elif state == GenerationState.FAILED:
                self._rollouts.end_in(connection, endpoint, error or {"error": "Failed"}, actor, only=number)
            return self._move(connection, current, state, actor, error)

    def get(self, endpoint: str, number: int) -> Generation | None:
        """Return one generation."""
        return next((g for g in self.list(endpoint) if g.number == number), None)

    def live(self, endpoint: str) -> Generation | None:
        """Return the generation that answers clients."""
        return next((g for g in self.list(endpoint) if g.state == GenerationState.LIVE), None)

    def list(self, endpoint: str) -> tuple[Generation, ...]:
        """Return all generations of an endpoint, by number."""
        with self._database.read() as connection:
            return _select(connection, endpoint)

    def endpoints(self) -> tuple[str, ...]:
        """Return the names of all endpoints that ever had a generation."""
        query = select(generations.c.endpoint).distinct().order_by(generations.c.endpoint)
        with self._database.read() as connection:
            return tuple(connection.execute(query).scalars())

    def stamp(self, site: str, lease: Lease | None = None) -> TableStamp:
        """Take the next table version of a site together with what that table must show.

        Both come from one write transaction: a higher version never shows an older state.
        """
        with self._audit.fenced(lease, f"table of {site}"), self._database.write() as connection:
            if lease is not None:
                fence(connection, lease)
            query = select(table_versions.c.version).where(table_versions.c.site == site)
            version = 1 + (connection.execute(query).scalar_one_or_none() or 0)
            self._database.put(connection, table_versions, [{"site": site, "version": version}])
            shown = generations.c.state.in_(sorted(ROUTED)) & (generations.c.site == site)
            found = connection.execute(
                select(generations).where(shown).order_by(generations.c.endpoint, generations.c.number)
            )
            rows = tuple(_generation(dict(row)) for row in found.mappings())
            shown_names = {row.endpoint for row in rows}
            slots = {name: count for name, count in _scales(connection).items() if name in shown_names}
            return TableStamp(site, version, rows, slots, active_by_endpoint(connection, site))

    def slots(self, endpoint: str) -> int | None:
        """Return how many slots of its pool an endpoint takes; None = all."""
        with self._database.read() as connection:
            return _scales(connection).get(endpoint)

    def set_slots(self, endpoint: str, slots: int | None, lease: Lease, *, actor: str) -> bool:
        """Say how many slots of its pool an endpoint takes, None for all; returns whether that is new. Idempotent.

        Raises:
            Conflict: Fenced.
        """
        with self._audit.fenced(lease, "scale"), self._database.write() as connection:
            fence(connection, lease)
            before = _scales(connection).get(endpoint)
            if before == slots:
                return False
            connection.execute(delete(scales).where(scales.c.endpoint == endpoint))
            if slots is not None:
                connection.execute(scales.insert().values(endpoint=endpoint, slots=slots))
            self._audit.append_in(connection, actor, "endpoint.scale", endpoint, {"slots": slots, "was": before})
            return True

    def _compare(self, connection: Connection, known: tuple[Generation, ...], request: GenerationRequest) -> None:
        compare_live(known, request)
        details = {"live": request.expected, "expected": request.expected}
        staged = next((g for g in known if g.state == GenerationState.STAGED), None)
        if staged is not None:
            raise Conflict(
                f"generation {staged.number} of {request.endpoint!r} is being rolled out by {staged.actor}",
                hint="wait until it is live or has failed",
                details={**details, "staged": staged.number},
            )
        # A rollback may overtake a rollout that is still judged after its switch; going live ends that one.
        active = active_in(connection, request.endpoint) if request.kind == "promote" else None
        if active is not None:
            raise Conflict(
                f"the rollout of generation {active.generation} of {request.endpoint!r} is {active.state}",
                hint="wait until it has ended, or abort it",
                details={**details, "rollout": active.generation},
            )

    def _move(
        self,
        connection: Connection,
        current: Generation,
        state: GenerationState,
        actor: str,
        error: Mapping[str, Any] | None,
    ) -> Generation:
        if state not in TRANSITIONS[current.state]:
            raise Conflict(
                f"generation {current.number} of {current.endpoint!r} is {current.state} and cannot become {state}",
                hint="look at the endpoint's generations; a rollback makes a new one",
            )
        moved = replace(current, state=state, error=error, changed_at=self._database.now(connection))
        here = (generations.c.endpoint == current.endpoint) & (generations.c.number == current.number)
        values = {"state": state.value, "error": error, "changed_at": moved.changed_at}
        connection.execute(update(generations).where(here).values(values))
        self._record(connection, moved, actor, f"generation.{state}", {"was": current.state.value, "error": error})
        return moved

    def _record(
        self, connection: Connection, generation: Generation, actor: str, action: str, detail: Mapping[str, Any]
    ) -> None:
        subject = f"{generation.endpoint}/{generation.number}"
        facts = {"bundle": generation.bundle, "pool": generation.pool, "site": generation.site, **detail}
        self._audit.append_in(connection, actor, action, subject, facts)


def variant_artifacts(generation: Generation) -> tuple[str, ...]:
    """Return the digests of the stored artifacts that hold its variants, for whatever SoC."""
    found = (generation.variant_artifact, *(str(build["variant_artifact"]) for build in generation.builds))
    return tuple(dict.fromkeys(digest for digest in found if digest))


def _scales(connection: Connection) -> dict[str, int]:
    return {str(name): int(slots) for name, slots in connection.execute(select(scales)).tuples()}


def _select(connection: Connection, endpoint: str) -> tuple[Generation, ...]:
    query = select(generations).where(generations.c.endpoint == endpoint).order_by(generations.c.number)
    return tuple(_generation(dict(row)) for row in connection.execute(query).mappings())


def _generation(values: Mapping[Any, Any]) -> Generation:
    fields: dict[str, Any] = {**values, "state": GenerationState(values["state"]), "builds": tuple(values["builds"])}
    return Generation(**fields)
