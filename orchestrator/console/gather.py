"""From the ledger, the routers and the stored evidence to what the pages show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from orchestrator.app.rollout_lead import leader
from orchestrator.app.wiring import Workplace
from orchestrator.console.evidence import EvidenceReader
from orchestrator.console.traffic import Sites, SiteView
from orchestrator.console.view import (
    ApprovalView,
    ArmView,
    Badge,
    EndpointRow,
    EndpointView,
    GenerationView,
    PairsView,
    RolloutView,
    StepView,
    Tone,
)
from orchestrator.core.digests import short
from orchestrator.ledger import Generation, GenerationState, Ledger, Rollout, RolloutState
from orchestrator.rollout.strategy import Strategy
from orchestrator.rollout.strategy_text import step_text
from orchestrator.rollout.walk import missing_approvals

_SHOWN: Final = 12
_PAST: Final = 8
_TONES: Final[Mapping[GenerationState, Tone]] = {
    GenerationState.STAGED: "busy",
    GenerationState.LIVE: "good",
    GenerationState.WARM: "calm",
    GenerationState.DRAINING: "calm",
    GenerationState.RETIRED: "calm",
    GenerationState.FAILED: "bad",
}
_ROLLOUTS: Final[Mapping[RolloutState, Tone]] = {
    RolloutState.PROGRESSING: "busy",
    RolloutState.PAUSED: "warn",
    RolloutState.SUCCEEDED: "good",
    RolloutState.ABORTED: "bad",
}
_VERDICTS: Final[Mapping[str, Tone]] = {"passed": "good", "failed": "bad", "inconclusive": "warn"}
_PEOPLE: Final = ("approval", "operator", "inconclusive")
_SIGNS: Final = {"exact": "=", "prefix": "begins with", "regex": "matches"}
_TRAFFIC: Final = {
    "weighted": "by weight",
    "version": "asked by number",
    "header": "by header",
    "probe": "replayed samples",
}


class Gather:
    """Reads what the pages show.

    Args:
        workplace: Of the environment.
        ledger: Its ledger.
        sites: Its sites.
    """

    def __init__(self, workplace: Workplace, ledger: Ledger, sites: Sites) -> None:
        self._workplace, self._ledger, self._sites = workplace, ledger, sites
        self._evidence = EvidenceReader(ledger)

    def endpoints(self) -> list[EndpointRow]:
        """Return a line for each endpoint that ever had a generation."""
        active = {rollout.endpoint: rollout for rollout in self._ledger.rollouts.all_active()}
        return [self._row(name, active.get(name)) for name in self._ledger.generations.endpoints()]

    def endpoint(self, name: str) -> EndpointView | None:
        """Return one endpoint; None where there is none of the name."""
        generations = self._ledger.generations.list(name)
        if not generations:
            return None
        rollouts = sorted(self._ledger.rollouts.list(name), key=lambda r: r.started_at, reverse=True)
        current = rollouts[0] if rollouts else None
        shown = _shown(generations)
        site = self._sites.view(shown.site)
        active = current if current is not None and current.state.active else None
        views = [_generation_view(g, site, active) for g in reversed(generations[-_SHOWN:])]
        counted: Mapping[str, Any] = self._sites.evidence(shown.site, name) if active is not None else {}
        return EndpointView(
            name=name,
            badge=_state(generations, site),
            url=f"{site.url}/v2/models/{name}" if site.url else "",
            site=shown.site,
            pool=shown.pool,
            device=shown.device,
            rehearsal=self._rehearsal(shown),
            live=next((g.number for g in generations if g.state == GenerationState.LIVE), 0),
            generations=tuple(views),
            older=max(0, len(generations) - _SHOWN),
            split=tuple(sorted((v for v in views if v.ready is not None), key=lambda v: v.number)),
            arms=_arms(counted),
            pairs=_pairs(counted),
            rollout=None if current is None else self._rollout_view(current, generations, full=True),
            past=tuple(self._rollout_view(r, generations, full=False) for r in rollouts[1 : _PAST + 1]),
            targets=_targets(generations),
            site_error=site.error,
        )

    def _row(self, name: str, rollout: Rollout | None) -> EndpointRow:
        generations = self._ledger.generations.list(name)
        shown = _shown(generations)
        live = next((g.number for g in generations if g.state == GenerationState.LIVE), 0)
        text = "" if rollout is None else f"{rollout.stable or 'none'} → {rollout.generation} at {rollout.weight} %"
        return EndpointRow(
            name=name,
            badge=_state(generations, self._sites.view(shown.site)),
            live=live,
            bundle=short(shown.bundle),
            device=shown.device,
            rehearsal=self._rehearsal(shown),
            site=shown.site,
            pool=shown.pool,
            rollout=text,
            rollout_badge=None if rollout is None else Badge(rollout.state.value, _ROLLOUTS[rollout.state]),
        )

    def _led_by(self, endpoint: str) -> str:
        found = leader(self._ledger, endpoint)
        return "" if found is None else f"{found.owner.user}@{found.owner.host} (process {found.owner.pid})"

    def _rehearsal(self, generation: Generation) -> bool:
        pool = self._workplace.environment.pools.get(generation.pool)
        return "rehearsal" in generation.device if pool is None else pool.rehearsal

    def _rollout_view(self, rollout: Rollout, generations: Sequence[Generation], *, full: bool) -> RolloutView:
        strategy = Strategy.from_json(rollout.strategy)
        active, waiting = rollout.state.active, rollout.waiting or {}
        found = self._evidence.metrics(rollout, strategy) if full else None
        bundle = next((g.bundle for g in generations if g.number == rollout.generation), "")
        verdict = str((rollout.verdict or {}).get("state", ""))
        return RolloutView(
            generation=rollout.generation,
            stable=rollout.stable,
            kind=strategy.kind,
            badge=Badge(rollout.state.value, _ROLLOUTS[rollout.state]),
            active=active,
            steps=_steps(rollout, strategy),
            weight=rollout.weight,
            mirror=rollout.mirror,
            headers=tuple(_route(row) for row in rollout.headers),
            sticky=strategy.sticky,
            waiting=str(waiting.get("text", "")) if active else "",
            waiting_since=cast("float | None", waiting.get("since")),
            waits_for_person=waiting.get("kind") in _PEOPLE,
            intent=rollout.intent if active else "",
            led_by=self._led_by(rollout.endpoint) if active else "",
            error=_error(rollout.error),
            verdict=Badge(f"evidence {verdict}", _VERDICTS.get(verdict, "calm")) if verdict else None,
            judged=found.what if found is not None else "",
            synthetic_share=found.synthetic_share if found is not None else 0.0,
            metrics=found.metrics if found is not None else (),
            approvals=tuple(_approval(row) for row in rollout.approvals),
            approvals_wanted=strategy.approvals,
            approvals_given=strategy.approvals - missing_approvals(rollout, strategy, bundle),
            bundle=bundle,
            actor=rollout.actor,
            reason=rollout.reason,
            started_at=rollout.started_at,
            ended_at=rollout.ended_at,
        )


def _shown(generations: Sequence[Generation]) -> Generation:
    return next((g for g in generations if g.state == GenerationState.LIVE), generations[-1])


def _state(generations: Sequence[Generation], site: SiteView) -> Badge:
    live = next((g for g in generations if g.state == GenerationState.LIVE), None)
    if live is None:
        return Badge("nothing live", "calm")
    if site.error:
        return Badge("site down", "bad")
    row = site.row(live.endpoint, live.number)
    ready = row is not None and (row["ready"] or row.get("cold"))
    return Badge("ready", "good") if ready else Badge("not ready", "warn")


def _generation_view(generation: Generation, site: SiteView, active: Rollout | None) -> GenerationView:
    row = site.row(generation.endpoint, generation.number)
    parts = {} if active is None else {active.stable: "stable", active.generation: "canary"}
    return GenerationView(
        number=generation.number,
        badge=Badge(generation.state.value, _TONES[generation.state]),
        kind=generation.kind,
        bundle=generation.bundle,
        device=generation.device,
        actor=generation.actor,
        reason=generation.reason,
        created_at=generation.created_at,
        error=_error(generation.error),
        weight=int(row["weight"]) if row is not None else 0,
        part=cast("Any", parts.get(generation.number, "")),
        ready=None if row is None else int(row["ready"]),
        queued=0 if row is None else int(row["queued"]),
        in_flight=0 if row is None else int(row["in_flight"]),
        traffic=None if row is None else site.traffic(generation.endpoint, generation.number),
    )


def _steps(rollout: Rollout, strategy: Strategy) -> tuple[StepView, ...]:
    texts = [step_text(step) for step in strategy.steps]
    if strategy.approvals:
        texts.append(f"{strategy.approvals} approval{'s' if strategy.approvals > 1 else ''}")
    texts.append("live")
    if rollout.state == RolloutState.SUCCEEDED:
        return tuple(StepView(text, "done") for text in texts)
    return tuple(
        StepView(text, "done" if i < rollout.step else "now" if i == rollout.step else "next")
        for i, text in enumerate(texts)
    )


def _targets(generations: Sequence[Generation]) -> tuple[int, ...]:
    """Return the generations that a rollback can go to, the newest first; the last that served before comes first."""
    live = next((g for g in generations if g.state == GenerationState.LIVE), None)
    served = {GenerationState.WARM, GenerationState.DRAINING, GenerationState.RETIRED}
    known = [g for g in generations if g.state in served and (live is None or g.bundle != live.bundle)]
    return tuple(
        g.number for g in sorted(known, key=lambda g: (g.state == GenerationState.WARM, g.number), reverse=True)
    )


def _arms(counted: Mapping[str, Any]) -> tuple[ArmView, ...]:
    sums: dict[tuple[int, str], list[int]] = {}
    for router in cast("Sequence[Mapping[str, Any]]", counted.get("routers", ())):
        for arm in cast("Sequence[Mapping[str, Any]]", router.get("arms", ())):
            errors = sum(cast("Mapping[str, int]", arm.get("errors", {})).values())
            names = ("shared", "fell_back", "refused", "nonfinite", "saturated")
            values = [int(arm["requests"]), errors, *(int(arm.get(name, 0)) for name in names)]
            row = sums.setdefault((int(arm["generation"]), str(arm["traffic"])), [0] * len(values))
            row[:] = [a + b for a, b in zip(row, values, strict=True)]
    return tuple(ArmView(number, _TRAFFIC.get(kind, kind), *row) for (number, kind), row in sorted(sums.items()))


def _pairs(counted: Mapping[str, Any]) -> PairsView | None:
    rows = [router["pairs"] for router in counted.get("routers", ()) if router.get("pairs")]
    if not any(row["n"] for row in rows):
        return None
    return PairsView(
        *(sum(int(r.get(name, 0)) for r in rows) for name in ("n", "agree", "top1", "flips", "dropped", "failed"))
    )


def _route(row: Mapping[str, Any]) -> str:
    return f"{row['name']} {_SIGNS.get(str(row['how']), '')} {row['value']}"


def _approval(row: Mapping[str, Any]) -> ApprovalView:
    return ApprovalView(
        str(row["identity"]), str(row["decision"]), str(row.get("reason", "")), float(row.get("t", 0.0))
    )


def _error(error: Mapping[str, Any] | None) -> str:
    return "" if not error else str(error.get("message") or error.get("text") or error.get("error") or "")
