"""What a deploy is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestrator.core.digests import sha256_json
from orchestrator.graph.verdict import Thresholds
from orchestrator.ledger import Generation, GenerationKind, GenerationRequest, Rollout
from orchestrator.rollout.strategy import Strategy

if TYPE_CHECKING:
    from orchestrator.rollout.capacity import PoolFacts
    from orchestrator.rollout.smoke import SmokeReport

LIMITS: Final = "limits"
"""In a generation's evidence: what its smoke test asked; a rollback to it asks the same."""
STRATEGY: Final = "strategy"
"""In a generation's evidence: how it was rolled out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployRequest:
    """What shall be served where.

    Attributes:
        bundle: Digest that clients will see.
        path: The unpacked bundle on the serve site.
        artifact: Digest of the stored artifact that holds the bundle; empty when it was carried here.
        runtime: Which runtime loads it, e.g. `onnx-cpu`.
        device: What the pool's slots say they are, e.g. `cpu (rehearsal)`.
        variant: Digest of the variant to load in place of the bundle's graph; empty without one.
        variant_artifact: Digest of the stored artifact that holds the variant.
        variant_path: The variant's folder on the serve site.
        builds: What each SoC of the pool loads, see `Generation.builds`; empty where the pool has one.
        expected: The live generation that the caller has seen; None takes the one that is live now.
        thresholds: What the smoke test asks.
        saturating: Whether the device hides overflow and NaN.
        ready_timeout_s: How long replicas may take to load.
        drain_timeout_s: How long the old generation may take to finish its requests before it is retired anyway;
            the router still answers those that it holds.
        wait_s: How long to wait for another rollout of this endpoint.
        strategy: How it takes over from what is live; all at once where nothing is said or nothing is live.
        facts: What is known of the pool's memory; None does not ask whether both generations fit.
    """

    endpoint: str
    pool: str
    bundle: str
    path: Path
    runtime: str
    device: str
    actor: str
    artifact: str = ""
    variant: str = ""
    variant_artifact: str = ""
    variant_path: str = ""
    builds: tuple[Mapping[str, Any], ...] = ()
    kind: GenerationKind = "promote"
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict[str, Any])
    expected: int | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    saturating: bool = False
    ready_timeout_s: float = 120.0
    drain_timeout_s: float = 30.0
    wait_s: float = 0.0
    strategy: Strategy = field(default_factory=Strategy)
    facts: PoolFacts | None = None

    def asks_for(self, generation: Generation) -> bool:
        """Tell whether a generation is what is asked for."""
        return _wanted(generation) == _wanted(self)

    def for_ledger(self, site: str, *, live: int, settled: int) -> GenerationRequest:
        """Return the append that this request makes now.

        Its id stays the same until the request is settled one way or the other: a repeat after a crash finds the
        generation that it has begun, a repeat after a failure makes a new one.

        Args:
            site: Name of the serve site.
            live: Number of the live generation, 0 = none.
            settled: Highest number that is no longer staged, 0 = none.
        """
        identity: dict[str, Any] = {
            "endpoint": self.endpoint,
            "site": site,
            "pool": self.pool,
            "bundle": self.bundle,
            "variant": self.variant,
            "runtime": self.runtime,
            "device": self.device,
            "kind": self.kind,
            "expected": self.expected,
            "after": settled,
        }
        if self.builds:
            identity["builds"] = [build["variant"] for build in self.builds]
        return GenerationRequest(
            endpoint=self.endpoint,
            site=site,
            pool=self.pool,
            bundle=self.bundle,
            artifact=self.artifact,
            path=str(self.path.absolute()),
            runtime=self.runtime,
            device=self.device,
            variant=self.variant,
            variant_artifact=self.variant_artifact,
            variant_path=self.variant_path,
            builds=self.builds,
            kind=self.kind,
            expected=live if self.expected is None else self.expected,
            request_id=sha256_json(identity),
            actor=self.actor,
            reason=self.reason,
            evidence={**self.evidence, LIMITS: asdict(self.thresholds) | {"saturating": self.saturating}}
            | ({STRATEGY: self.strategy.to_json()} if self.strategy != Strategy() else {}),
        )


def _wanted(of: DeployRequest | Generation) -> tuple[object, ...]:
    return (of.bundle, of.variant, of.runtime, of.device, tuple(build["variant"] for build in of.builds))


@dataclass(frozen=True, slots=True)
class Deployed:
    """The end of a deploy.

    Attributes:
        generation: Number of the live generation.
        previous: Number of the generation that was live before; 0 = none, or nothing changed.
        smoke: What the golden samples showed; None when the bundle was live already, or an earlier command has seen it.
        rollout: The walk that led to it; None where it took all requests at once.
    """

    endpoint: str
    generation: int
    bundle: str
    pool: str
    device: str
    url: str
    previous: int
    smoke: SmokeReport | None
    rollout: Rollout | None = None

    def to_json(self, request: DeployRequest) -> dict[str, Any]:
        """Return the answer to `request`, JSON-ready."""
        names = ("endpoint", "generation", "previous", "bundle", "pool", "device", "url")
        told: dict[str, Any] = {name: getattr(self, name) for name in names}
        smoke = None if self.smoke is None else self.smoke.to_json()
        return told | {"variant": request.variant, "runtime": request.runtime, "smoke": smoke}
