"""Rollback: an earlier generation's build serves again, as a new generation. Needs the ledger, the site and its disk; no more.

A build that is still loaded answers at once: one transaction and one write at the router. One that is not is loaded and
proven first. Whoever leads a rollout of the endpoint is fenced, the rollout is aborted, and its canary loses all traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.core.digests import sha256_json
from orchestrator.core.errors import Conflict, OrchestratorError, StoreError
from orchestrator.core.faults import point
from orchestrator.ledger import Generation, GenerationRequest, GenerationState, Lease, Ledger, Owner
from orchestrator.rollout import going_back
from orchestrator.rollout.readiness import counters
from orchestrator.rollout.site import Site
from orchestrator.rollout.stage import TTL_S, Stage

_DRAIN_S: Final = 5.0
"""The switch has happened before; the router still answers what the former one holds."""


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback did.

    Attributes:
        generation: The live generation now.
        to: The generation whose build serves again; itself where a rollout was only taken back.
        was: The generation that was live before.
        changed: False: an earlier command had done it.
        aborted: The canary that lost its traffic; 0 = none was under way.
    """

    endpoint: str
    generation: int
    to: int
    was: int
    bundle: str
    pool: str
    device: str
    url: str
    changed: bool
    aborted: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the answer, JSON-ready."""
        return asdict(self)


def rollback(
    ledger: Ledger,
    site: Site,
    endpoint: str,
    to: int | None = None,
    expect: int | None = None,
    *,
    actor: str,
    reason: str = "",
    tell: Callable[[str], None] | None = None,
    ready_timeout_s: float = 120.0,
    drain_timeout_s: float = _DRAIN_S,
) -> RolledBack:
    """Let an earlier generation's build serve again.

    Args:
        ledger: The serve site's ledger.
        site: The endpoint's site.
        endpoint: Its name.
        to: Generation whose build shall serve; None = the last one that served before and was not rolled back from. While
            a rollout is under way, None only takes the canary back: the live generation gets all requests.
        expect: The live generation that the caller has seen; another one is a conflict. None takes what is live.
        actor: Whom the audit names.
        reason: Why.
        tell: Hears one line per stage.
        ready_timeout_s: How long a build that is not loaded may take.
        drain_timeout_s: How long the former generation may take before it is retired anyway.

    Raises:
        UsageError: Nothing is live there, or there is nothing to go back to.
        Conflict: Another generation is live than expected, or somebody else took the lead.
        StoreError: The build's files are gone.
        GateError: A build that had to be loaded failed its golden samples; the live one was left alone.
        Unreachable: The router does not answer; the same command goes on.
    """
    owner = Owner.here(f"rollback {endpoint}")
    # Nobody is waited for: whoever leads is fenced by this, and changes nothing from here on.
    with ledger.leases.held(f"endpoint/{endpoint}", owner, ttl_s=TTL_S, seize=True) as lease:
        point("rollout.back_seized")
        stage = Stage(ledger, site, lease, actor=actor, tell=tell or _silent)
        return _Back(ledger, site, stage, lease, (endpoint, actor, reason), (ready_timeout_s, drain_timeout_s)).go(
            to, expect
        )


def _silent(_text: str) -> None:
    return


class _Back:
    """One rollback, by the holder of the endpoint's lease."""

    def __init__(
        self,
        ledger: Ledger,
        site: Site,
        stage: Stage,
        lease: Lease,
        who: tuple[str, str, str],
        timeouts_s: tuple[float, float],
    ) -> None:
        self._ledger, self._site, self._stage, self._lease = ledger, site, stage, lease
        self._endpoint, self._actor, self._reason = who
        self._ready_timeout_s, self._drain_timeout_s = timeouts_s

    def go(self, to: int | None, expect: int | None) -> RolledBack:
        known = self._ledger.generations.list(self._endpoint)
        live = going_back.live_one(known, self._endpoint)
        done = None
        if expect is not None:  # the same command before, and each that failed at loading
            ids = {self._id(to, expect, after) for after in (0, *going_back.failed(known, expect))}
            done = next((g for g in reversed(known) if g.request_id in ids), None)
        done = done or (live if to is None and going_back.unfinished(known, live) else None)
        if done is not None and done.number == live.number:
            self._finish()
            return self._told(live, going_back.origin(known, live), was=going_back.before(known, live), changed=False)
        if expect is not None and live.number != expect:
            raise Conflict(
                f"endpoint {self._endpoint!r} is at generation {live.number}, not {expect}",
                hint="someone else changed it; look at the endpoint, then repeat the command",
                details={"live": live.number, "expected": expect},
            )
        staged = next((g for g in known if g.state == GenerationState.STAGED), None)
        under_way = self._ledger.rollouts.active(self._endpoint) is not None
        if staged is not None and under_way and to in (None, live.number):
            return self._take_back(staged, live)
        request_id = self._id(to, live.number, max(going_back.failed(known, live.number), default=0))
        if staged is not None and staged.kind == "rollback" and to is None:
            to, request_id = (
                going_back.origin(known, staged).number,
                staged.request_id,
            )  # a killed rollback was loading it
        target = going_back.target(known, live, to)
        if going_back.build(target) == going_back.build(live):
            self._finish()
            return self._told(live, target, was=live.number, changed=False)
        return self._to(target, live, staged, request_id)

    def _to(self, target: Generation, live: Generation, staged: Generation | None, request_id: str) -> RolledBack:
        _check_files(target)
        request = _request(target, live.number, request_id, self._actor, self._reason)
        if counters(self._site.status(), target).get("ready", 0):
            made = self._ledger.generations.roll_back(request, self._lease)
            point("rollout.back_recorded")
        else:
            made = self._load(request, staged)
        self._finish()
        return self._told(made, target, was=live.number, changed=True)

    def _take_back(self, staged: Generation, live: Generation) -> RolledBack:
        """Abort the rollout that is under way; what is live has all requests again."""
        error = {"error": "RolledBack", "message": f"{self._actor} took it back: {self._reason or 'no reason given'}"}
        self._stage.set_state(staged, GenerationState.FAILED, error=error)
        point("rollout.back_recorded")
        self._finish()
        return self._told(live, live, was=live.number, changed=True, aborted=staged.number)

    def _load(self, request: GenerationRequest, staged: Generation | None) -> Generation:
        """Load and prove a build that is not in the pool any more, beside the live one; then switch."""
        from orchestrator.graph.verdict import Thresholds
        from orchestrator.rollout.request import LIMITS
        from orchestrator.rollout.smoke import smoke_test

        if staged is not None and staged.request_id != request.request_id:
            error = {"error": "RolledBack", "message": f"{self._actor} rolled the endpoint back: {self._reason}"}
            self._stage.set_state(staged, GenerationState.FAILED, error=error)
        made = self._ledger.generations.append(request, self._lease)
        point("rollout.back_appended")
        limits: dict[str, Any] = dict(made.evidence.get(LIMITS, {}))
        saturating = bool(limits.pop("saturating", False))
        try:
            version = self._stage.publish()
            self._stage.wait_ready(made, version, self._ready_timeout_s)
            smoke_test(self._site, made, Thresholds(**limits), saturating=saturating, alive=self._stage.renew)
        except OrchestratorError as error:
            if error.exit_code != Conflict.exit_code and not _undecided(error):
                self._stage.fail(made, error)
            raise
        self._stage.set_state(made, GenerationState.LIVE)
        point("rollout.back_recorded")
        return made

    def _finish(self) -> None:
        """Show what was decided. Who has taken the lead since shows it too: what was committed stays done."""
        try:
            self._stage.publish()
            point("rollout.back_published")
            self._stage.end_former(self._endpoint, self._drain_timeout_s)
        except Conflict:
            return

    def _id(self, to: int | None, expect: int, after: int) -> str:
        """Return one id for one wish; `after`, the last try of it that failed, makes the next try a new one."""
        wish = {"endpoint": self._endpoint, "kind": "rollback", "to": to, "expected": expect}
        return sha256_json(wish | ({"after": after} if after else {}))

    def _told(self, live: Generation, target: Generation, *, was: int, changed: bool, aborted: int = 0) -> RolledBack:
        url = f"{self._site.url}/v2/models/{live.endpoint}"
        return RolledBack(
            self._endpoint, live.number, target.number, was, live.bundle, live.pool, live.device, url, changed, aborted
        )


def _undecided(error: OrchestratorError) -> bool:
    from orchestrator.core.errors import Unreachable

    return isinstance(error, Unreachable)


def _check_files(target: Generation) -> None:
    """Refuse a build whose files were collected.

    Raises:
        StoreError: They are not there.
    """
    folders = [target.path, target.variant_path, *(str(build["variant_path"]) for build in target.builds)]
    for folder in folders:
        if folder and not Path(folder).is_dir():
            raise StoreError(
                f"the files of generation {target.number} of {target.endpoint!r} are gone",
                place=folder,
                hint="run its recipe again, or go back to another generation with --to; `rollout.keep` keeps more",
            )


def _request(target: Generation, live: int, request_id: str, actor: str, reason: str) -> GenerationRequest:
    kept: Mapping[str, Any] = {
        name: getattr(target, name)
        for name in (
            "endpoint", "site", "pool", "bundle", "artifact", "path", "runtime", "device",
            "variant", "variant_artifact", "variant_path", "builds", "evidence",
        )
    }  # fmt: skip
    why = reason or f"rollback to generation {target.number}"
    return GenerationRequest(**kept, kind="rollback", expected=live, request_id=request_id, actor=actor, reason=why)
