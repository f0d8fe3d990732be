"""Ledger rows -> the frozen picture that tracking mirrors into MLflow."""

from __future__ import annotations

from typing import Any

from orchestrator.app.wiring import Workplace
from orchestrator.bundle.store import Store
from orchestrator.core.errors import OrchestratorError
from orchestrator.ledger import ExecutionRow, Ledger, StepRow
from orchestrator.tracking.snapshot import (
    ArtifactRef,
    Dataset,
    Deployment,
    ExecutionSnapshot,
    GitState,
    MetricPoint,
    StepSnapshot,
)


def snapshot(workplace: Workplace, ledger: Ledger, execution: str) -> ExecutionSnapshot:
    """Return one execution as the ledger knows it now."""
    row = ledger.executions.get(execution)
    builder = _Builder(ledger, workplace.store, row)
    events = workplace.execution_folder(execution) / "events.ndjson"
    git: dict[str, Any] = dict(row.git or {})
    return ExecutionSnapshot(
        id=row.id,
        recipe=row.recipe,
        recipe_sha256=row.recipe_sha256,
        recipe_text=row.recipe_text,
        plan=row.plan,
        state=row.state,
        started_at_ms=_ms(row.created_at) or 0,
        ended_at_ms=_ms(row.ended_at),
        user=row.user,
        environment=row.environment,
        steps=tuple(builder.step(step) for step in ledger.executions.steps(execution)),
        git=GitState(git["commit"], git["dirty"], git.get("branch", ""), git.get("url", "")) if git else None,
        events_path=events if events.exists() else None,
    )


class _Builder:
    def __init__(self, ledger: Ledger, store: Store, execution: ExecutionRow) -> None:
        self._ledger = ledger
        self._store = store
        self._execution = execution

    def step(self, row: StepRow) -> StepSnapshot:
        parts: dict[str, Any] = dict(row.parts)
        metrics = self._ledger.executions.metrics(row.execution, row.name)
        return StepSnapshot(
            name=row.name,
            kind=row.kind,
            action=row.action,
            state=row.state,
            started_at_ms=_ms(row.started_at),
            ended_at_ms=_ms(row.ended_at),
            reason=row.reason,
            params=_params(parts),
            metrics=tuple(MetricPoint(m.name, m.value, m.step_number, _ms(m.t) or 0) for m in metrics),
            summary=dict(row.metrics),
            sources=parts.get("sources", {}),
            datasets=tuple(_dataset(name, text, row.kind) for name, text in parts.get("data", {}).items()),
            inputs=tuple(self._ref(digest, name) for name, digest in parts.get("inputs", {}).items()),
            outputs=tuple(self._ref(digest, name, row) for name, digest in row.outputs.items()),
            fingerprint=row.fingerprint or "",
            error=str(row.error.get("message", "")) if row.error else "",
            reused_from=self._reused_from(row),
            deployment=_deployment(row),
            attempt=max(row.attempt, 1),
            facts=row.facts,
        )

    def _ref(self, digest: str, name: str, maker: StepRow | None = None) -> ArtifactRef:
        known = self._ledger.artifacts.get(digest)
        try:
            path = self._store.path(digest)
        except OrchestratorError:
            path = None  # only the digest is known here; its files were collected or live on another site
        return ArtifactRef(
            digest=digest,
            kind=known.kind if known else name,
            name=name,
            path=path,
            size_bytes=known.size_bytes if known else 0,
            facts=maker.facts if maker else {},
            parents=self._ledger.artifacts.parents(digest),
        )

    def _reused_from(self, row: StepRow) -> str:
        if row.action != "REUSE":
            return ""
        makers = [known.execution for d in row.outputs.values() if (known := self._ledger.artifacts.get(d))]
        return next((maker for maker in makers if maker), "")


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


def _params(parts: dict[str, Any]) -> dict[str, str]:
    prefix = "params."
    return {key.removeprefix(prefix): str(v) for key, v in parts.get("spec", {}).items() if key.startswith(prefix)}


def _dataset(name: str, text: str, kind: str) -> Dataset:
    uri, _, digest = text.rpartition("@")
    context = {"train": "training", "evaluate": "evaluation"}.get(kind, "samples")
    return Dataset(name, uri or text, digest, context)


def _deployment(row: StepRow) -> Deployment | None:
    facts: dict[str, Any] = dict(row.facts)
    if row.kind != "deploy" or row.state != "succeeded" or "endpoint" not in facts:
        return None
    return Deployment(
        facts["endpoint"], facts["generation"], facts["pool"], facts["bundle"], facts.get("url", ""), facts["device"]
    )
