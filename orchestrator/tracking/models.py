"""LoggedModels: one per artifact digest and experiment, with the files beside it and edges to the runs around it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from orchestrator.core.redact import redact
from orchestrator.tracking.call import KEY_TAG, Call, Record
from orchestrator.tracking.limits import PARAM_MAX_CHARS, safe_key, safe_model_name, safe_value
from orchestrator.tracking.lineage import Lineage
from orchestrator.tracking.snapshot import ArtifactRef


def model_key(digest: str) -> str:
    """Return the key of a LoggedModel within its experiment."""
    return f"model:{digest}"


def record_key(call: Call, digest: str) -> str:
    """Return the key of its record: the experiment is part of it, because recipes may share an artifact."""
    return f"model:{call.experiment_id}:{digest}"


def ensure_model(call: Call, lineage: Lineage, digest: str, run_id: str | None) -> Record:
    """Return the record of the LoggedModel of an artifact; its parents' must exist already.

    Args:
        call: This call.
        lineage: Where it comes from.
        digest: Of the artifact.
        run_id: The run that made it; None when only its files are known here.
    """
    ref = lineage.refs[digest]
    record = call.ensure(
        record_key(call, digest),
        find=lambda: _find(call, digest),
        create=lambda: _create(call, lineage, ref, run_id),
        delete=lambda model_id: call.session.run(
            f"delete the double {model_id}", lambda c: c.delete_logged_model(model_id)
        ),
    )
    call.model_ids[digest] = record.id
    return record


def _find(call: Call, digest: str) -> list[str]:
    query = f"tags.`{KEY_TAG}` = '{model_key(digest)}'"
    models = call.session.run(
        f"find model {digest}",
        lambda c: c.search_logged_models([call.experiment_id], filter_string=query, max_results=20),
    )
    return [model.model_id for model in sorted(models, key=lambda m: (m.creation_timestamp, m.model_id))]


def _create(call: Call, lineage: Lineage, ref: ArtifactRef, run_id: str | None) -> str:
    maker = lineage.makers.get(ref.digest)
    parents = lineage.parents(ref.digest)
    tags = {
        KEY_TAG: model_key(ref.digest),
        "orch.kind": ref.kind,
        "orch.sha256": ref.digest,
        "orch.fingerprint": maker.fingerprint if maker else "",
        "orch.exec": call.snapshot.id,
        "orch.size_bytes": str(ref.size_bytes),
        "orch.parents": json.dumps([call.model_ids[parent] for parent in parents if parent in call.model_ids]),
        "orch.parent_digests": json.dumps(list(parents)),
    }
    params = {safe_key(name): _fact(name, value) for name, value in ref.facts.items()}
    name = safe_model_name(f"{call.snapshot.recipe}-{ref.kind}")
    model = call.session.run(
        f"create model {ref.digest}",
        lambda c: c.create_logged_model(
            call.experiment_id, name=name, source_run_id=run_id, tags=tags, params=params, model_type=ref.kind
        ),
    )
    return model.model_id


def _fact(name: str, value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(redact(value, name), sort_keys=True, default=str)
    if len(text) > PARAM_MAX_CHARS:
        return f"{len(text)} characters, too long for MLflow: artifact step.json of the run that made it"
    return safe_value(name, text)


def put_model_tags(call: Call, record: Record, tags: dict[str, str], aspect: str) -> None:
    """Set tags of a LoggedModel (they may change after READY)."""
    call.once(
        record,
        aspect,
        tags,
        lambda: call.session.run(f"tags of {record.key}", lambda c: c.set_logged_model_tags(record.id, tags)),
    )


def put_inputs(call: Call, run: Record, model_ids: Sequence[str]) -> None:
    """Mark models as a run's inputs; repeating it changes nothing."""
    if not model_ids:
        return

    def send() -> None:
        from mlflow.entities import LoggedModelInput

        models = [LoggedModelInput(model_id) for model_id in model_ids]
        call.session.run(f"inputs of {run.key}", lambda c: c.log_inputs(run.id, models=models))

    call.once(run, "inputs", list(model_ids), send)


def put_outputs(call: Call, run: Record, model_ids: Sequence[str], step: int) -> None:
    """Mark models as a run's outputs; MLflow fails on a repeated one, so those that it has are left out.

    Args:
        call: This call.
        run: The run that made (or reused) them.
        model_ids: LoggedModel ids.
        step: Training step that they belong to.
    """
    if not model_ids:
        return

    def send() -> None:
        from mlflow.entities import LoggedModelOutput

        shown = call.session.run(f"outputs of {run.key}", lambda c: c.get_run(run.id)).outputs
        present = {output.model_id for output in shown.model_outputs} if shown else set[str]()
        missing = [LoggedModelOutput(model_id, step) for model_id in model_ids if model_id not in present]
        if missing:
            call.session.run(f"outputs of {run.key}", lambda c: c.log_outputs(run.id, missing))

    call.once(run, "outputs", list(model_ids), send)
