"""The aliases of MLflow, as `rollout watch` sees them: requests are made once, what is refused is not asked again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol

from orchestrator.app.alias_moves import Aliases, Seen, drift, look
from orchestrator.app.releases import bundle_of
from orchestrator.app.rollout_snapshots import origin
from orchestrator.app.strategies import last_strategy
from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import (
    Conflict,
    DeviceError,
    GateError,
    IntegrityError,
    OrchestratorError,
    PlanError,
    UsageError,
    Waiting,
)
from orchestrator.ledger import Generation, GenerationState, Ledger, Owner
from orchestrator.tracking.aliases import placed_aliases

REQUEST: Final = "request"
"""Under which key of a generation's evidence the id of its request stands."""

_FOR_GOOD: Final = (UsageError, IntegrityError, GateError, DeviceError, PlanError)
_TTL_S: Final = 60.0


class Tell(Protocol):
    """Says one event."""

    def __call__(self, event: str, endpoint: str, text: str, **more: Any) -> None:
        """Say it."""
        ...


@dataclass(frozen=True, slots=True)
class _Request:
    """A move of the followed alias that asks for a rollout."""

    endpoint: str
    pool: str
    alias: str
    id: str
    bundle: str
    named: str


class AliasWatch:
    """Looks at the aliases of every endpoint's recipe.

    Args:
        workplace: Whose MLflow.
        ledger: The truth.
        tell: Hears of requests and drift.
        start: Runs a job beside: its name, its endpoint, its work.
    """

    def __init__(
        self, workplace: Workplace, ledger: Ledger, tell: Tell, start: Callable[[str, str, Callable[[], None]], None]
    ) -> None:
        self._workplace, self._ledger, self._tell, self._start = workplace, ledger, tell, start
        self._reported: dict[str, list[str]] = {}

    def look(self) -> None:
        """Look once at all endpoints.

        Raises:
            Unreachable: MLflow does not answer.
        """
        from orchestrator.tracking.lookup import Registry

        registry = Registry(self._workplace.tracking_uri, self._workplace.artifact_root)
        for endpoint in self._ledger.generations.endpoints():
            known = self._ledger.generations.list(endpoint)
            _, recipe, _ = origin(self._ledger, known[-1])
            self._endpoint(endpoint, known, registry.aliases(recipe))

    def _endpoint(self, endpoint: str, known: tuple[Generation, ...], aliases: Aliases) -> None:
        strategy = last_strategy(self._ledger, endpoint)
        alias = strategy.promote_from if strategy is not None else ""
        before = self._seen(endpoint)
        placed = placed_aliases(self._ledger.projections, self._workplace.tracking_uri, endpoint)
        now, found = drift(before, aliases, placed, alias)
        if found != self._reported.get(endpoint, []):
            self._reported[endpoint] = found
            for text in found:
                self._tell("drift", endpoint, text)
        now = look(now, aliases, alias) if alias else now
        first = self._ledger.projections.get(_key(endpoint)) is None
        if first and not now.settled and self._served(known, now):
            now = replace(now, settled=True)  # nobody knows when it moved: what has served already is no news
        if first or now != before:
            self._keep(endpoint, now)
        if alias and not now.settled:
            request = self._request(endpoint, known[-1].pool, alias, now)
            if request is not None:
                self._start(f"promote {endpoint}", endpoint, partial(self._promote, request))

    def _served(self, known: tuple[Generation, ...], now: Seen) -> bool:
        bundles = self._bundles(now.moved)
        return len(bundles) == 1 and any(g.bundle in bundles for g in known)

    def _bundles(self, at: Mapping[str, str]) -> set[str]:
        """Return the bundles that versions stand for; an unclear one is an empty text."""
        from orchestrator.tracking.lookup import Registry

        registry = Registry(self._workplace.tracking_uri, self._workplace.artifact_root)
        found: set[str] = set()
        for name, version in at.items():
            try:
                found.add(bundle_of(self._workplace, self._ledger, registry.version(name, version=version)))
            except UsageError:
                found.add("")
        return found

    def _request(self, endpoint: str, pool: str, alias: str, now: Seen) -> _Request | None:
        named = ", ".join(f"{name}/{version}" for name, version in sorted(now.moved.items()))
        bundles = self._bundles(now.moved)
        if len(bundles) > 1:
            self._once(endpoint, f"{alias} moved to {named}, which are of {len(bundles)} bundles: move them to one")
            return None
        bundle = next(iter(bundles), "")
        if not bundle:
            why = f"{alias} moved to {named}, which names no bundle that is known here"
            self._settle(endpoint, now, why)
            self._tell("refused", endpoint, why)
            return None
        return _Request(endpoint, pool, alias, now.request(endpoint, alias), bundle, named)

    def _once(self, endpoint: str, text: str) -> None:
        key = f"{endpoint}:request"
        if self._reported.get(key) != [text]:
            self._reported[key] = [text]
            self._tell("drift", endpoint, text)

    def _promote(self, request: _Request) -> None:
        """Carry a request out, once: whoever holds this lease looks whether it was done before.

        Raises:
            Conflict: The endpoint is busy; asked again later.
            InfraError: Something did not answer; likewise.
        """
        from orchestrator.app.promotion import PromoteAsk, promote

        owner = Owner.here(f"watch {request.endpoint}")
        with self._ledger.leases.held(f"watch/{request.endpoint}", owner, ttl_s=_TTL_S):
            now = self._seen(request.endpoint)
            if now.settled or now.request(request.endpoint, request.alias) != request.id:
                return
            if (why := self._done(request)) is not None:
                self._settle(request.endpoint, now, "")
                self._tell("request", request.endpoint, why, request=request.id)
                return
            reason = f"alias {request.alias} moved to {request.named}"
            self._tell("request", request.endpoint, reason, request=request.id, bundle=request.bundle)
            asked = PromoteAsk(
                model=request.bundle,
                endpoint=request.endpoint,
                pool=request.pool,
                no_wait=True,
                reason=reason,
                evidence={REQUEST: request.id, "alias": request.alias, "versions": dict(now.moved)},
            )
            try:
                done = promote(self._workplace, asked, partial(self._tell, "message", request.endpoint))
            except OrchestratorError as error:
                self._ended(request, now, error)
            else:
                self._settle(request.endpoint, now, "")
                text = f"generation {done['generation']} is live"
                self._tell("rollout", request.endpoint, text, generation=done["generation"], state="succeeded")

    def _done(self, request: _Request) -> str | None:
        """Say what has become of a request already; None when nothing has."""
        for generation in self._ledger.generations.list(request.endpoint):
            if generation.evidence.get(REQUEST) == request.id and generation.kind == "promote":
                return f"{request.alias} -> {request.named} is generation {generation.number} ({generation.state})"
            if generation.bundle == request.bundle and generation.state == GenerationState.LIVE:
                return f"{request.alias} -> {request.named} is live already (generation {generation.number})"
        return None

    def _ended(self, request: _Request, now: Seen, error: OrchestratorError) -> None:
        """Settle a request that has failed for good or whose rollout others go on with; raise what may pass."""
        made = [g for g in self._ledger.generations.list(request.endpoint) if g.evidence.get(REQUEST) == request.id]
        if isinstance(error, Waiting):
            self._settle(request.endpoint, now, "")
            self._tell("waiting", request.endpoint, error.message)
            return
        failed = any(g.state == GenerationState.FAILED for g in made)
        if isinstance(error, Conflict) or not (isinstance(error, _FOR_GOOD) or failed):
            raise error
        self._settle(request.endpoint, now, error.message)
        text = f"{error.message}; not repeated until {request.alias} moves again"
        self._tell("refused", request.endpoint, text, error=error.code, request=request.id)

    def _settle(self, endpoint: str, seen: Seen, refused: str) -> None:
        now = self._seen(endpoint)
        if (now.moves, dict(now.at)) == (seen.moves, dict(seen.at)):
            self._keep(endpoint, replace(now, settled=True, refused=refused))

    def _seen(self, endpoint: str) -> Seen:
        return Seen.from_text(self._ledger.projections.get(_key(endpoint)))

    def _keep(self, endpoint: str, seen: Seen) -> None:
        self._ledger.projections.put(_key(endpoint), seen.to_text())


def _key(endpoint: str) -> str:
    return f"orchestrate:watch:{endpoint}"
