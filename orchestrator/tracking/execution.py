"""One execution: its experiment and run, then its steps, models, files, registry and notes, in the order of their worth."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Final

from orchestrator.core.digests import sha256_file
from orchestrator.core.redact import redact, redact_text
from orchestrator.tracking.call import Call, Record
from orchestrator.tracking.copies import put_model_files
from orchestrator.tracking.limits import NOTE, fit_note
from orchestrator.tracking.lineage import Lineage
from orchestrator.tracking.measures import put_headlines
from orchestrator.tracking.models import put_model_tags, record_key
from orchestrator.tracking.notes import execution_note, model_note, step_note
from orchestrator.tracking.pages import experiment_page, model_page, run_page
from orchestrator.tracking.registry import ensure_version, mark_candidate, mark_live
from orchestrator.tracking.runs import ensure_run, put_file, put_pairs, put_status, put_tags, put_text, run_status
from orchestrator.tracking.snapshot import ExecutionSnapshot, StepSnapshot
from orchestrator.tracking.steps import mirror_step

_DEPLOYING: Final = {"deploy", "rollback"}


def mirror(call: Call) -> None:
    """Bring MLflow to the snapshot: figures and edges first, large files later, notes and the end last."""
    snapshot, lineage = call.snapshot, Lineage.of(call.snapshot)
    call.experiment_id = ensure_experiment(call)
    call.urls["experiment"] = experiment_page(call.experiment_id)
    run = ensure_run(
        call, f"exec:{snapshot.id}", f"exec {snapshot.id}", {"orch.kind": "execution"}, snapshot.started_at_ms
    )
    call.run_ids["execution"] = run.id
    call.urls["execution"] = run_page(call.experiment_id, run.id)
    with call.keeping(run):
        put_tags(call, run, _tags(snapshot))
    shown: list[tuple[StepSnapshot, Record]] = []
    for step in snapshot.steps:
        record = mirror_step(call, lineage, step)
        if record is not None:
            shown.append((step, record))
    _copies(call, lineage)
    for step, record in shown:
        with call.keeping(record):
            _register(call, lineage, step, record)
            put_note(call, record, step_note(call, lineage, step))
    _notes(call, lineage)
    with call.keeping(run):
        put_headlines(call, run)
        put_note(call, run, execution_note(call, lineage))
        _files(call, run)
        put_status(call, run, snapshot.state, snapshot.ended_at_ms)
    call.remove_doubles()


def ensure_experiment(call: Call) -> str:
    """Return the id of the recipe's experiment."""
    name = f"orchestrate/{call.snapshot.recipe}"
    tags = {"orch.recipe": call.snapshot.recipe, "mlflow.experimentKind": "custom_model_development"}
    root = call.session.artifact_root
    location = None if call.session.is_server or root is None else (root / call.snapshot.recipe).absolute().as_uri()

    def find() -> list[str]:
        found = call.session.run(f"find {name}", lambda c: c.get_experiment_by_name(name))
        if found is not None and found.lifecycle_stage != "active":
            call.session.run(f"restore {name}", lambda c: c.restore_experiment(found.experiment_id))
        return [] if found is None else [found.experiment_id]

    def create() -> str:
        return call.session.run(f"create {name}", lambda c: c.create_experiment(name, location, tags))

    def delete(_: str) -> None:
        """Names are unique."""

    return call.ensure(f"experiment:{call.snapshot.recipe}", find=find, create=create, delete=delete).id


def _tags(snapshot: ExecutionSnapshot) -> dict[str, str]:
    tags = {
        "orch.exec": snapshot.id,
        "orch.recipe": snapshot.recipe,
        "orch.recipe_sha256": snapshot.recipe_sha256,
        "orch.environment": snapshot.environment,
        "orch.state": snapshot.state,
        "mlflow.source.name": f"orchestrate run {snapshot.recipe}",
        "mlflow.source.type": "PROJECT",
    }
    if snapshot.git is not None:
        tags["mlflow.source.git.commit"] = snapshot.git.commit
        tags["orch.git_dirty"] = str(snapshot.git.dirty).lower()
        tags["mlflow.source.git.branch"] = snapshot.git.branch
        tags["mlflow.source.git.repoURL"] = snapshot.git.url
    return {key: value for key, value in tags.items() if value}


def _copies(call: Call, lineage: Lineage) -> None:
    """Copy the files of the models that this execution made or shows; a reused model is READY and costs nothing."""
    for digest in call.model_ids:
        record = call.memory.record(record_key(call, digest))
        call.urls[f"model:{digest}"] = model_page(call.experiment_id, record.id)
        with call.keeping(record):
            put_model_files(call, record, lineage.refs[digest])


def _register(call: Call, lineage: Lineage, step: StepSnapshot, run: Record) -> None:
    if step.kind not in _DEPLOYING | {"register"} or run_status(step.state) != "FINISHED":
        return
    at_ms = step.ended_at_ms or step.started_at_ms or call.snapshot.started_at_ms
    for digest in lineage.models_of_release(step.inputs):
        ref, model = lineage.refs[digest], call.memory.record(record_key(call, digest))
        if digest not in call.model_ids or "ready" not in model.sent:
            continue  # refused above, with its reason
        maker = lineage.makers.get(digest)
        version = ensure_version(call, ref, model, call.run_ids.get(maker.name) if maker else None)
        if step.kind == "register":
            mark_candidate(call, ref, version, run, at_ms, _bundle(lineage, step))
        elif step.deployment is not None:
            mark_live(call, ref, version, run, step.deployment, at_ms)


def _bundle(lineage: Lineage, step: StepSnapshot) -> str:
    """Return the digest that clients see of the bundle that a step took; empty where the step that made it is not known."""
    facts = (lineage.refs[ref.digest].facts for ref in step.inputs if ref.kind == "bundle")
    return next((str(found["bundle"]) for found in facts if found.get("bundle")), "")


def _notes(call: Call, lineage: Lineage) -> None:
    for digest in call.model_ids:
        record, maker = call.memory.record(record_key(call, digest)), lineage.makers.get(digest)
        if "note" in record.sent and (maker is None or maker.action.startswith("REUSE")):
            continue  # the execution that made it has said more than one that only used it could
        with call.keeping(record):
            put_model_tags(call, record, {NOTE: redact_text(model_note(call, lineage, digest))}, "note")


def put_note(call: Call, run: Record, text: str) -> None:
    """Set the note of a run's page; what is too long goes to a file."""
    fitted = fit_note(text)
    put_pairs(call, run, fitted.values, "note")
    for path, whole in fitted.files.items():
        put_text(call, run, path, whole)


def _files(call: Call, run: Record) -> None:
    snapshot = call.snapshot
    put_text(call, run, "recipe.yaml", redact_text(snapshot.recipe_text))
    put_text(call, run, "plan.json", json.dumps(redact(snapshot.plan), indent=2, sort_keys=True, default=str) + "\n")
    events = snapshot.events_path
    if events is None or run_status(snapshot.state) == "RUNNING" or not events.is_file():
        return
    digest = sha256_file(events)
    if run.sent.get("events") == digest[-12:]:
        return
    with tempfile.TemporaryDirectory(prefix="orchestrate-tracking-") as temp:
        clean = Path(temp) / "events.jsonl"
        with events.open(encoding="utf-8", errors="replace") as lines, clean.open("w", encoding="utf-8") as file:
            file.writelines(redact_text(line) for line in lines)
        put_file(call, run, clean, "", digest)
    run.sent["events"] = digest[-12:]
