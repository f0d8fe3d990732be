"""What is shown of rollouts in MLflow, as frozen data: one move of an endpoint, and where its aliases point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.tracking.snapshot import MetricPoint


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model of a release.

    Attributes:
        digest: Of the artifact.
        kind: checkpoint, onnx, twin, variant.
        optional: MLflow may not know it: what was compiled is registered only by the execution that deploys it.
    """

    digest: str
    kind: str
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSnapshot:
    """One move of an endpoint to a generation, by promotion or rollback, as the ledger knows it now.

    Attributes:
        endpoint: What clients call.
        generation: The move's own generation; 1, 2, 3 ...
        kind: promote or rollback.
        stable: The generation that was live when it began; 0 = none.
        recipe: Whose bundle it is; its experiment gets the run.
        state: progressing, paused, succeeded, aborted.
        models: Models of the bundle, oldest first.
        expected: Its models are in MLflow or will be soon: the move is not shown whole before they are.
        strategy: How it went; None where it took all requests at once.
        strategy_digest: Names the strategy.
        verdict: The last judgement.
        approvals: Who said what.
        points: Weight, e-values and bounds over time; in the order of time.
        figures: Final figures.
        evidence: What was counted, row by row; uploaded when the move has ended.
        plot: An SVG; empty where there is nothing to draw.
    """

    endpoint: str
    generation: int
    kind: str
    stable: int
    recipe: str
    state: str
    pool: str
    site: str
    bundle: str
    device: str
    actor: str
    reason: str
    started_at_ms: int
    ended_at_ms: int | None = None
    execution: str = ""
    variant: str = ""
    models: tuple[ModelRef, ...] = ()
    expected: bool = True
    strategy: Mapping[str, object] | None = None
    strategy_digest: str = ""
    verdict: Mapping[str, object] | None = None
    error: str = ""
    approvals: Sequence[Mapping[str, object]] = ()
    points: tuple[MetricPoint, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    evidence: Sequence[Mapping[str, object]] = ()
    plot: str = ""

    @property
    def ended(self) -> bool:
        """Whether the move is over."""
        return self.state in {"succeeded", "aborted"}


@dataclass(frozen=True, slots=True)
class Placed:
    """A generation that an alias shows: its number, its recipe, its models; `expected` as in `RolloutSnapshot`."""

    generation: int
    recipe: str
    bundle: str
    models: tuple[ModelRef, ...]
    expected: bool = True


@dataclass(frozen=True, slots=True)
class AliasSnapshot:
    """Where the aliases of an endpoint's models shall point.

    Attributes:
        endpoint: Whose.
        at_ms: When the live generation became so, Unix ms.
        places: `live`, `canary`, `previous` -> what stands there; an absent one stands for nothing.
        actor: Who moved it last.
    """

    endpoint: str
    at_ms: int
    places: Mapping[str, Placed]
    actor: str = ""

    def content(self) -> dict[str, object]:
        """Return what must be shown, JSON-ready: equal contents need no second projection."""
        return {
            alias: [placed.generation, placed.recipe, placed.bundle] for alias, placed in sorted(self.places.items())
        }
