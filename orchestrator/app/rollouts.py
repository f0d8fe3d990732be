"""Operating rollouts: pause, resume, abort, skip, approve, reject, and rolling an endpoint back.

An operator writes a wish into the ledger; whoever drives the rollout carries it out. A rollback needs nothing but the ledger and
the site: no MLflow, no train site, no compiler.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from orchestrator.app.wiring import Workplace
from orchestrator.core.errors import Conflict, UsageError
from orchestrator.core.lines import one_line
from orchestrator.recipe.problems import did_you_mean

if TYPE_CHECKING:
    from orchestrator.ledger import Generation, Ledger, Rollout
    from orchestrator.rollout.strategy import Strategy

Decision = Literal["approve", "reject"]
Intent = Literal["pause", "resume", "abort", "promote"]

_DONE: Final = {"abort": "aborted", "promote": "succeeded"}
_BUSY_S: Final = 5.0
"""An operator in a hurry hears soon who holds the ledger; writers need milliseconds, unless one was stopped in the middle."""


@dataclass(frozen=True, slots=True)
class RollbackAsk:
    """What a rollback was asked for.

    Attributes:
        to: Generation whose bundle shall serve again; None = the one that was live before.
        expect: Generation that must be live now; None = whatever is.
        actor: Who asks; empty = the user of this process.
    """

    endpoint: str
    to: int | None = None
    expect: int | None = None
    actor: str = ""
    reason: str = ""


def pause(
    workplace: Workplace, endpoint: str, *, actor: str, reason: str = "", generation: int | None = None
) -> dict[str, Any]:
    """Ask that a rollout keep its weights as they are; see `ask`."""
    return ask(workplace, endpoint, "pause", actor=actor, reason=reason, generation=generation)


def resume(
    workplace: Workplace, endpoint: str, *, actor: str, reason: str = "", generation: int | None = None
) -> dict[str, Any]:
    """Ask that a paused rollout go on; see `ask`."""
    return ask(workplace, endpoint, "resume", actor=actor, reason=reason, generation=generation)


def abort(
    workplace: Workplace, endpoint: str, *, actor: str, reason: str = "", generation: int | None = None
) -> dict[str, Any]:
    """Ask that the canary lose all its traffic at once; see `ask`."""
    return ask(workplace, endpoint, "abort", actor=actor, reason=reason, generation=generation)


def ask(
    workplace: Workplace,
    endpoint: str,
    intent: Intent,
    *,
    actor: str,
    reason: str = "",
    generation: int | None = None,
) -> dict[str, Any]:
    """Write an operator's wish into the ledger; asking again changes nothing.

    Args:
        workplace: Whose ledger.
        endpoint: Its name.
        intent: The wish; `promote` skips the steps that are left.
        actor: Who asks.
        reason: Why; the audit keeps it.
        generation: The canary that is meant; None = whichever is under way.

    Returns:
        `{endpoint, generation, state, intent, step, weight, waiting, changed}`.

    Raises:
        UsageError: There is no such endpoint.
        Conflict: No rollout is under way, or of another generation.
    """
    with workplace.open_ledger(busy_timeout_s=_BUSY_S) as ledger:
        row = _active(ledger, endpoint)
        if row is None:
            return _settled(ledger, endpoint, intent, generation)
        _same(row, generation)
        so_already = (intent, row.state.value) in {("pause", "paused"), ("resume", "progressing")}
        if row.intent == intent or (so_already and not row.intent):
            return _told(row, changed=False)
        return _told(ledger.rollouts.ask(endpoint, intent, actor=actor, reason=one_line(reason)), changed=True)


def decide(
    workplace: Workplace,
    endpoint: str,
    decision: Decision,
    *,
    identity: str,
    by_token: bool,
    reason: str = "",
    generation: int | None = None,
) -> dict[str, Any]:
    """Record that somebody approves or rejects the rollout that is under way; saying it again changes nothing.

    Args:
        workplace: Whose ledger.
        endpoint: Its name.
        decision: What is said.
        identity: Who says it.
        by_token: Whether a token has shown that.
        reason: Why.
        generation: What was looked at; None = whichever is under way.

    Returns:
        As `ask`, with `approvals: {given, wanted}`.

    Raises:
        UsageError: This rollout's approvals are shown by tokens, and none is.
        Conflict: No rollout is under way, or this identity has said the opposite of this step, or approves what it asked for.
    """
    from orchestrator.rollout.strategy import Strategy
    from orchestrator.rollout.walk import missing_approvals

    with workplace.open_ledger(busy_timeout_s=_BUSY_S) as ledger:
        row = _active(ledger, endpoint)
        canary = ledger.generations.get(endpoint, row.generation) if row is not None else None
        if row is None or canary is None:
            raise _nothing_under_way(ledger, endpoint)
        _same(row, generation)
        strategy = Strategy.from_json(row.strategy)
        _may_decide(row, strategy, decision, identity, by_token=by_token)
        said = {
            "identity": identity,
            "by_token": by_token,
            "decision": decision,
            "step": row.step,
            "bundle": canary.bundle,
            "reason": one_line(reason),
            "t": time.time(),
        }
        after = ledger.rollouts.decide(endpoint, row.generation, said, actor=identity)
        missing = missing_approvals(after, strategy, canary.bundle)
    changed = len(after.approvals) > len(row.approvals)
    told = _told(after, changed=changed) | {"bundle": canary.bundle, "decision": decision, "identity": identity}
    return told | {"approvals": {"given": strategy.approvals - missing, "wanted": strategy.approvals}}


def _may_decide(row: Rollout, strategy: Strategy, decision: Decision, identity: str, *, by_token: bool) -> None:
    if strategy.by_token and not by_token:
        raise UsageError(
            f"the site of {row.endpoint!r} named approvers when this rollout was asked for: a token must show who you are",
            hint="name the environment with -e and the file of your token with --token-file",
        )
    if decision == "approve" and strategy.approvals and identity == row.actor:
        raise Conflict(
            f"{identity} has asked for this rollout, and approvals are of others",
            hint="ask somebody else to approve it",
        )


def who_decides(workplace: Workplace, endpoint: str, token_file: Path | None) -> tuple[str, bool]:
    """Return who approves or rejects, and whether a token shows it.

    Where the endpoint's site names no file of approvers, it is the user of this process.

    Raises:
        UsageError: There is no such endpoint, the token is none, or it does not have the role `approve`.
    """
    from orchestrator.app.tokens import open_identities
    from orchestrator.ledger.rows import user_name
    from orchestrator.rollout.identity import given_token

    with workplace.open_ledger(busy_timeout_s=_BUSY_S) as ledger:
        site = known_endpoint(ledger, endpoint)[-1].site
    identities = open_identities(workplace, site)
    if identities is None:
        return user_name(), False
    return identities.identify(given_token(token_file)).require("approve").id, True


def rollback(workplace: Workplace, asked: RollbackAsk, tell: Callable[[str], None]) -> dict[str, Any]:
    """Let an earlier generation's bundle serve again, at once.

    Returns:
        `{endpoint, generation, to, was, bundle, pool, device, url, changed}`.

    Raises:
        UsageError: There is no such endpoint, or nothing to roll back to.
        Conflict: Another generation is live than expected.
        StoreError: The files of that generation are no longer here.
        LedgerError: Another process, which is named, holds the ledger for writing.
    """
    from orchestrator.app.serve_site import connect
    from orchestrator.ledger.rows import user_name
    from orchestrator.rollout.rollback import rollback as roll_back

    with workplace.open_ledger(busy_timeout_s=_BUSY_S) as ledger:
        known = known_endpoint(ledger, asked.endpoint)
        site = connect(workplace, known[-1].site)
        return roll_back(
            ledger,
            site,
            asked.endpoint,
            to=asked.to,
            expect=asked.expect,
            actor=asked.actor or user_name(),
            reason=one_line(asked.reason),
            tell=tell,
        ).to_json()


def known_endpoint(ledger: Ledger, endpoint: str) -> tuple[Generation, ...]:
    """Return the generations of an endpoint.

    Raises:
        UsageError: There never was one of that name.
    """
    known = ledger.generations.list(endpoint)
    if not known:
        near = did_you_mean(endpoint, ledger.generations.endpoints()).strip(" ()")
        hint = f"{near[:1].upper()}{near[1:]}" if near else "`orchestrate endpoint list` shows them"
        raise UsageError(f"there is no endpoint {endpoint!r}", hint=hint)
    return known


def _active(ledger: Ledger, endpoint: str) -> Rollout | None:
    known_endpoint(ledger, endpoint)
    return ledger.rollouts.active(endpoint)


def _same(row: Rollout, generation: int | None) -> None:
    if generation is not None and row.generation != generation:
        raise Conflict(
            f"the rollout of {row.endpoint!r} that is under way is of generation {row.generation}, not {generation}",
            hint=f"look at it: orchestrate rollout status --endpoint {row.endpoint}",
        )


def _settled(ledger: Ledger, endpoint: str, intent: Intent, generation: int | None) -> dict[str, Any]:
    """Return the rollout that has ended as it is asked for now; a repeated command finds its work done."""
    rows = ledger.rollouts.list(endpoint)
    last = next((row for row in reversed(rows) if generation in (None, row.generation)), None)
    if last is not None and last.state.value == _DONE.get(intent):
        return _told(last, changed=False)
    raise _nothing_under_way(ledger, endpoint)


def _nothing_under_way(ledger: Ledger, endpoint: str) -> Conflict:
    live = ledger.generations.live(endpoint)
    serves = f"generation {live.number} serves" if live is not None else "nothing is live"
    return Conflict(
        f"no rollout of {endpoint!r} is under way: {serves}",
        hint=f"orchestrate rollout history --endpoint {endpoint}",
    )


def _told(row: Rollout, *, changed: bool) -> dict[str, Any]:
    return {
        "endpoint": row.endpoint,
        "generation": row.generation,
        "state": row.state.value,
        "intent": row.intent,
        "step": row.step,
        "weight": row.weight,
        "waiting": dict(row.waiting) if row.waiting else None,
        "changed": changed,
    }
