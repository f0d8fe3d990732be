"""One step: a nested run with its parameters, curves, data, and the models that it used and made."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.core.digests import sha256_file
from orchestrator.core.redact import redact
from orchestrator.tracking.call import Call, Record
from orchestrator.tracking.copies import REPORT_MAX_BYTES
from orchestrator.tracking.lineage import Lineage
from orchestrator.tracking.measures import put_curves, put_datasets, put_summary
from orchestrator.tracking.models import ensure_model, put_inputs, put_outputs
from orchestrator.tracking.pages import run_page
from orchestrator.tracking.runs import (
    ensure_run,
    put_file,
    put_params,
    put_status,
    put_tags,
    put_text,
    run_status,
)
from orchestrator.tracking.snapshot import ArtifactRef, ExecutionSnapshot, StepSnapshot


def step_key(execution: str, step: str) -> str:
    """Return the key of a step's run."""
    return f"step:{execution}/{step}"


def mirror_step(call: Call, lineage: Lineage, step: StepSnapshot) -> Record | None:
    """Bring one step's run to the snapshot; None for a step that has not begun or is skipped."""
    if step.action.startswith("SKIP") or (step.started_at_ms is None and run_status(step.state) == "RUNNING"):
        return None
    snapshot = call.snapshot
    tags = {"mlflow.parentRunId": call.run_ids["execution"], "orch.kind": step.kind, "orch.exec": snapshot.id}
    start_ms = step.started_at_ms or step.ended_at_ms or snapshot.started_at_ms
    run = ensure_run(call, step_key(snapshot.id, step.name), step.name, tags, start_ms)
    call.run_ids[step.name] = run.id
    call.urls[f"step:{step.name}"] = run_page(call.experiment_id, run.id)
    with call.keeping(run):
        put_tags(call, run, _tags(snapshot, step))
        put_params(call, run, step.params)
        put_datasets(call, run, step)
        used = _models(call, lineage, step, lineage.models_behind(step.inputs))
        put_inputs(call, run, used)
        put_curves(call, run, step)
        made = _outputs(call, lineage, step, run)
        if run_status(step.state) != "RUNNING":
            put_summary(call, run, step, [*used, *made])
            _files(call, run, step)
        put_status(call, run, step.state, step.ended_at_ms)
    return run


def _models(call: Call, lineage: Lineage, step: StepSnapshot, digests: list[str]) -> list[str]:
    """Return the ids of the LoggedModels that a step used, made here when an earlier execution never showed them."""
    ids: list[str] = []
    for digest in digests:
        for needed in [*reversed(lineage.ancestors(digest)), digest]:
            if needed not in call.model_ids and lineage.is_model(needed) and needed not in _made_by(step):
                maker = lineage.makers.get(needed)
                ensure_model(call, lineage, needed, call.run_ids.get(maker.name) if maker else None)
        ids.append(call.model_ids[digest])
    return ids


def _made_by(step: StepSnapshot) -> set[str]:
    return {ref.digest for ref in step.outputs}


def _outputs(call: Call, lineage: Lineage, step: StepSnapshot, run: Record) -> list[str]:
    if run_status(step.state) != "FINISHED":
        return []
    models = [ref.digest for ref in step.outputs if lineage.is_model(ref.digest)]
    made = [ensure_model(call, lineage, digest, run.id).id for digest in models]
    put_outputs(call, run, made, max((point.step for point in step.metrics), default=0))
    return made


def _tags(snapshot: ExecutionSnapshot, step: StepSnapshot) -> dict[str, str]:
    tags = {
        "orch.recipe": snapshot.recipe,
        "orch.recipe_sha256": snapshot.recipe_sha256,
        "orch.step": step.name,
        "orch.action": step.action,
        "orch.state": step.state,
        "orch.reason": step.reason,
        "orch.attempt": str(step.attempt),
        "orch.fingerprint": step.fingerprint,
        "orch.reused_from": step.reused_from,
        "orch.error": step.error,
        "mlflow.source.name": f"orchestrate run {snapshot.recipe}: {step.name}",
        "mlflow.source.type": "PROJECT",
    }
    if snapshot.git is not None:
        tags["mlflow.source.git.commit"] = snapshot.git.commit
        tags["orch.git_dirty"] = str(snapshot.git.dirty).lower()
    if step.sources:
        tags["orch.sources"] = json.dumps(dict(step.sources), sort_keys=True)
    tags |= {f"orch.in.{ref.name or ref.kind}": ref.digest for ref in step.inputs}
    tags |= {f"orch.out.{ref.name or ref.kind}": ref.digest for ref in step.outputs}
    if step.deployment is not None:
        live = step.deployment
        tags |= {
            "orch.endpoint": live.endpoint,
            "orch.generation": str(live.generation),
            "orch.pool": live.pool,
            "orch.bundle": live.bundle,
            "orch.device": live.device,
            "orch.url": live.url,
        }
    return {key: value for key, value in tags.items() if value}


def _files(call: Call, run: Record, step: StepSnapshot) -> None:
    facts = {"facts": step.facts, "sources": dict(step.sources), "fingerprint": step.fingerprint}
    put_text(call, run, "step.json", json.dumps(redact(facts), indent=2, sort_keys=True, default=str) + "\n")
    for ref in step.outputs:
        if ref.kind == "report" and ref.path is not None:
            _report(call, run, ref, ref.path)


def _report(call: Call, run: Record, ref: ArtifactRef, folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= REPORT_MAX_BYTES:
            place = Path("outputs", ref.name or ref.kind) / path.relative_to(folder).parent
            put_file(call, run, path, place.as_posix(), sha256_file(path))
