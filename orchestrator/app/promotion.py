"""`promote`: a model that exists, by name or digest, becomes the next generation of an endpoint, by its strategy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.app.asker import who_asks
from orchestrator.app.release_request import deploy_request
from orchestrator.app.releases import find_release, parse_model
from orchestrator.app.serve_site import connect
from orchestrator.app.strategies import choose_strategy, pool_of
from orchestrator.app.wiring import Workplace
from orchestrator.core.ids import check_name
from orchestrator.core.lines import one_line
from orchestrator.ledger import Holder, Ledger, Owner
from orchestrator.rollout.capacity import PoolFacts
from orchestrator.rollout.request import DeployRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteAsk:
    """What was asked for.

    Attributes:
        model: MODEL, MODEL@alias, MODEL/version, or a bundle's sha256 digest.
        recipe: Whose `rollout` says how; None = as the endpoint's last one.
        expect: Generation that must be live now, 0 = none; None = whatever is.
        no_wait: Do not wait for another rollout of the endpoint: exit 4.
        actor: Who asks; empty = the user of this process.
        evidence: Small facts that the generation keeps.
    """

    model: str
    endpoint: str
    pool: str
    recipe: Path | None = None
    expect: int | None = None
    no_wait: bool = False
    actor: str = ""
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict[str, Any])


def promote(
    workplace: Workplace,
    asked: PromoteAsk,
    tell: Callable[[str], None],
    on_wait: Callable[[Holder], None] | None = None,
) -> dict[str, Any]:
    """Roll a model out; returns when it is live.

    Returns:
        `{endpoint, generation, previous, bundle, variant, runtime, pool, device, url, model, strategy, rollout}`.

    Raises:
        UsageError: There is no such model, bundle or pool, or the pool demands more of the strategy.
        IntegrityError: The files are not what the digest says.
        Conflict: Another generation is live than expected, or another rollout is under way.
        GateError: The smoke test or the evidence said no.
        Waiting: It is paused; the same command goes on.
    """
    with workplace.open_ledger() as ledger:
        request, source = prepare_request(workplace, ledger, asked)
        tell(f"bundle {request.bundle} for {asked.endpoint!r} in pool {asked.pool!r}: {request.strategy.kind}")
        return roll_out(workplace, ledger, request, source, tell, on_wait)


def prepare_request(workplace: Workplace, ledger: Ledger, asked: PromoteAsk) -> tuple[DeployRequest, dict[str, str]]:
    """Return the request of a promotion, all of it verified, and how its model was named."""
    check_name(asked.endpoint, "endpoint")
    pool = pool_of(workplace, asked.pool)
    strategy, _ = choose_strategy(workplace, ledger, asked.endpoint, asked.pool, asked.recipe)
    release = find_release(workplace, ledger, parse_model(asked.model))
    actor, strategy = who_asks(workplace, pool.site, strategy, asked.actor)
    request = deploy_request(workplace, ledger, release, asked.endpoint, asked.pool, pool, actor)
    named = " ".join(
        [f"promote {asked.model}", *([f"({'/'.join(release.source.values())})"] if release.source else [])]
    )
    request = replace(
        request,
        strategy=strategy,
        facts=PoolFacts(asked.pool, pool.models == "lazy", pool.memory or 0),
        expected=asked.expect,
        reason=one_line(asked.reason or named),
        evidence={**asked.evidence, **({"source": dict(release.source)} if release.source else {})},
        wait_s=0.0 if asked.no_wait else math.inf,
    )
    return request, dict(release.source)


def roll_out(
    workplace: Workplace,
    ledger: Ledger,
    request: DeployRequest,
    source: Mapping[str, str],
    tell: Callable[[str], None],
    on_wait: Callable[[Holder], None] | None,
) -> dict[str, Any]:
    """Deploy a prepared request and return what `promote` returns."""
    from orchestrator.rollout.deploy import deploy

    site = connect(workplace, workplace.environment.pools[request.pool].site)
    owner = Owner.here(f"promote {request.endpoint}")
    done = deploy(ledger, site, request, owner, tell=tell, on_wait=on_wait)
    row = done.rollout
    return done.to_json(request) | {
        "model": dict(source),
        "strategy": request.strategy.kind,
        "rollout": None if row is None else {"state": row.state.value, "verdict": row.verdict},
    }
