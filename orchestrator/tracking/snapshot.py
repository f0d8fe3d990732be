"""What is shown in MLflow, as frozen data: the application builds it from the ledger, `project` mirrors it.

Imports nothing heavy, so that every room above may build snapshots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

MODEL_KINDS: Final = frozenset({"checkpoint", "onnx", "twin", "variant"})
"""Kinds of artifact that become a LoggedModel; the others show as tags and files of their run."""


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of a curve; `step` counts as the user counts, `t_ms` is Unix time in milliseconds."""

    name: str
    value: float
    step: int
    t_ms: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """Data that a step read; `context` is what for: `training`, `evaluation`, `samples`."""

    name: str
    uri: str
    digest: str
    context: str = ""


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """An artifact by digest.

    Attributes:
        digest: `sha256:<64 hex>`.
        kind: checkpoint, onnx, twin, variant, bundle, report, files.
        name: The input's or output's name in its step.
        path: Its verified folder on this machine; None when only the digest is known.
        size_bytes: Sum over its files.
        facts: Small JSON facts (opset, exporter, ...).
        parents: Digests that it was made from; empty means the inputs of the step that made it.
    """

    digest: str
    kind: str
    name: str = ""
    path: Path | None = None
    size_bytes: int = 0
    facts: Mapping[str, object] = field(default_factory=dict[str, object])
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a deploy or rollback step did: endpoint, its generation, and where it answers."""

    endpoint: str
    generation: int
    pool: str
    bundle: str
    url: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class GitState:
    """The user's repository when the execution began."""

    commit: str
    dirty: bool
    branch: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class StepSnapshot:
    """One step of an execution.

    Attributes:
        name: Unique in the execution.
        kind: preflight, train, source, evaluate, export, bundle, parity, register, deploy, custom.
        action: RUN, REUSE, RESUME, SKIP (or with a star, RUN*).
        state: pending, running, succeeded, failed..., waiting..., cancelled.
        started_at_ms: None: not started; a reused step has the time of its reuse.
        ended_at_ms: None: not ended.
        reason: Why it runs or is reused.
        params: The user's hyper-parameters; write-once.
        metrics: The curve's points, in the order of the ledger; only ever appended to.
        metrics_offset: How many earlier points were left out of `metrics` (see `metrics_sent`).
        summary: Final figures, e.g. accuracy; logged when the step has ended, tied to its models.
        sources: The user's source files: relative path -> digest.
        datasets: What it read.
        inputs: Artifacts it consumed.
        outputs: Artifacts it made.
        fingerprint: Digest of all that decides its output.
        error: Message of a failed step.
        reused_from: Id of the execution whose result was reused.
        deployment: Of a deploy (or rollback) step that succeeded.
        attempt: 1, 2, ...
        facts: Small JSON facts (devices, versions, verdict).
    """

    name: str
    kind: str
    action: str = "RUN"
    state: str = "pending"
    started_at_ms: int | None = None
    ended_at_ms: int | None = None
    reason: str = ""
    params: Mapping[str, str] = field(default_factory=dict[str, str])
    metrics: tuple[MetricPoint, ...] = ()
    metrics_offset: int = 0
    summary: Mapping[str, float] = field(default_factory=dict[str, float])
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    datasets: tuple[Dataset, ...] = ()
    inputs: tuple[ArtifactRef, ...] = ()
    outputs: tuple[ArtifactRef, ...] = ()
    fingerprint: str = ""
    error: str = ""
    reused_from: str = ""
    deployment: Deployment | None = None
    attempt: int = 1
    facts: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class ExecutionSnapshot:
    """One execution as the ledger knows it now.

    Attributes:
        id: The execution's id.
        recipe: The recipe's name; the experiment is `orchestrate/<recipe>`.
        recipe_sha256: Digest of the resolved recipe.
        recipe_text: The recipe as it ran.
        plan: The plan, JSON-ready.
        state: running, succeeded, failed..., waiting..., cancelled.
        started_at_ms: Unix time in milliseconds.
        ended_at_ms: None: not ended.
        user: Who.
        environment: The environment's name or file name.
        steps: In the order of the plan.
        git: None: not a repository.
        events_path: A JSON-lines file of events; uploaded when the execution has ended.
        lineage: Artifacts that no step here names but that are ancestors of those named (e.g. after a rollback).
    """

    id: str
    recipe: str
    recipe_sha256: str
    recipe_text: str
    plan: object
    state: str
    started_at_ms: int
    ended_at_ms: int | None = None
    user: str = ""
    environment: str = ""
    steps: tuple[StepSnapshot, ...] = ()
    git: GitState | None = None
    events_path: Path | None = None
    lineage: tuple[ArtifactRef, ...] = ()


class ProjectionMapping(Protocol):
    """Remembers MLflow ids and what was sent; durable, one writer at a time per execution."""

    def get(self, key: str) -> str | None:
        """Return the value, or None."""
        ...

    def put(self, key: str, value: str) -> None:
        """Store the value; returns when it is durable."""
        ...


@dataclass(frozen=True, slots=True)
class ProjectionReport:
    """What `project` reached.

    Attributes:
        done: Nothing is left to send.
        pending: What is left because MLflow was unreachable, slow or the budget was spent; call again.
        refused: What MLflow will never take, each with its reason; calling again does not help.
        urls: Page links by name: experiment, execution, `step:<name>`, `model:<digest>`, `registered:<name>`. Absolute for an
            http server, otherwise they begin with `/#/` (put the address of `serve_ui` before them).
        run_ids: `execution` and step names -> MLflow run id.
        model_ids: Digest -> LoggedModel id.
        wall_s: Seconds this call took.
    """

    done: bool
    pending: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    urls: Mapping[str, str] = field(default_factory=dict[str, str])
    run_ids: Mapping[str, str] = field(default_factory=dict[str, str])
    model_ids: Mapping[str, str] = field(default_factory=dict[str, str])
    wall_s: float = 0.0
