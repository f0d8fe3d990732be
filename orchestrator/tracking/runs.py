"""Runs: found by their key before they are made, and brought to the snapshot's state aspect by aspect."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from orchestrator.tracking.call import KEY_TAG, Call, Record
from orchestrator.tracking.limits import PAIRS_PER_BATCH, PARAM_MAX_CHARS, TAG_MAX_CHARS, batches, fit

_TERMINAL: Final = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED", "interrupted": "KILLED"}


def run_status(state: str) -> str:
    """Return MLflow's status for a state of ours; a state may carry a detail, as in `failed(user)`."""
    return _TERMINAL.get(state.partition("(")[0], "RUNNING")


def ensure_run(call: Call, key: str, name: str, tags: Mapping[str, str], start_ms: int) -> Record:
    """Return the record of the run with this key."""
    all_tags = {KEY_TAG: key, "mlflow.user": call.snapshot.user or "unknown", **tags}

    def find() -> list[str]:
        query = f"tags.`{KEY_TAG}` = '{key}'"
        runs = call.session.run(
            f"find run {key}",
            lambda c: c.search_runs([call.experiment_id], query, max_results=20),
        )
        return [run.info.run_id for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))]

    def create() -> str:
        run = call.session.run(
            f"create run {key}", lambda c: c.create_run(call.experiment_id, start_ms, all_tags, run_name=name)
        )
        return run.info.run_id

    def delete(run_id: str) -> None:
        call.session.run(f"delete the double {run_id} of {key}", lambda c: c.delete_run(run_id))

    return call.ensure(key, find=find, create=create, delete=delete)


def put_tags(call: Call, record: Record, tags: Mapping[str, str], aspect: str = "tags") -> None:
    """Set tags; those that are too long go to files."""
    fitted = fit(tags, TAG_MAX_CHARS, "tags")
    put_pairs(call, record, fitted.values, aspect)
    for path, text in fitted.files.items():
        put_text(call, record, path, text)


def put_pairs(call: Call, record: Record, values: Mapping[str, str], aspect: str) -> None:
    """Set tags that fit."""

    def send() -> None:
        from mlflow.entities import RunTag

        for some in batches(sorted(values.items()), PAIRS_PER_BATCH):
            tags = [RunTag(key, value) for key, value in some]
            call.session.run(f"tags of {record.key}", lambda c, tags=tags: c.log_batch(record.id, tags=tags))

    call.once(record, aspect, dict(values), send)


def put_params(call: Call, record: Record, params: Mapping[str, str]) -> None:
    """Log hyper-parameters; MLflow refuses another value for a key that it has, and then says so."""
    if not params:
        return
    fitted = fit(params, PARAM_MAX_CHARS, "params")

    def send() -> None:
        from mlflow.entities import Param

        for some in batches(sorted(fitted.values.items()), PAIRS_PER_BATCH):
            batch = [Param(key, value) for key, value in some]
            call.session.run(f"params of {record.key}", lambda c, batch=batch: c.log_batch(record.id, params=batch))

    call.once(record, "params", fitted.values, send)
    for path, text in fitted.files.items():
        put_text(call, record, path, text)


def put_text(call: Call, record: Record, path: str, text: str) -> None:
    """Write a text artifact; the caller has redacted it."""
    call.once(
        record,
        f"file {path}",
        text,
        lambda: call.session.run(f"{path} of {record.key}", lambda c: c.log_text(record.id, text, path)),
    )


def put_file(call: Call, record: Record, source: Path, folder: str, digest: str) -> None:
    """Copy one file into the run's artifacts.

    Args:
        call: This call.
        record: The run.
        source: A file here.
        folder: Artifact folder; empty for the top.
        digest: Of the content: sent once.
    """

    def send() -> None:
        # through a writable copy: the store's files are read-only, and so would MLflow's copy be, and its replacement fail
        with tempfile.TemporaryDirectory(prefix="orchestrate-tracking-") as temp:
            copy = Path(temp) / source.name
            copy.write_bytes(source.read_bytes())
            call.session.run_upload(
                f"{folder}/{source.name} of {record.key} {digest}",
                lambda c: c.log_artifact(record.id, str(copy), folder or None),
            )

    call.once(record, f"file {folder}/{source.name}", digest, send)


def put_status(call: Call, record: Record, state: str, ended_ms: int | None) -> None:
    """Set a run's status and end."""
    status = run_status(state)
    if status == "RUNNING" and "status" not in record.sent:
        return  # as created

    def send() -> None:
        if status == "RUNNING":
            call.session.run(f"reopen {record.key}", lambda c: c.update_run(record.id, status="RUNNING"))
        else:
            call.session.run(f"end {record.key}", lambda c: c.set_terminated(record.id, status, ended_ms))

    call.once(record, "status", [status, ended_ms], send)
