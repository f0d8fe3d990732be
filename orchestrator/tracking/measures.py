"""Metrics and data: curves while a step runs, final figures tied to models, datasets as inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.core.digests import hex_of, is_digest, sha256_bytes
from orchestrator.core.redact import redact_text
from orchestrator.tracking.call import Call, Record
from orchestrator.tracking.limits import (
    DATASET_DIGEST_MAX_CHARS,
    INPUT_TAG_MAX_CHARS,
    METRICS_PER_BATCH,
    batches,
    safe_key,
)
from orchestrator.tracking.snapshot import Dataset, MetricPoint, StepSnapshot

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput


def put_curves(call: Call, record: Record, step: StepSnapshot) -> None:
    """Send the points of the curves that were not sent yet, in batches; the count is stored after each batch.

    A batch that is sent again after a crash changes nothing: MLflow keeps one row per (name, time, step, value).
    """
    sent = int(record.sent.get("points", 0))
    total = step.metrics_offset + len(step.metrics)
    if sent < step.metrics_offset:
        call.refused.append(f"{record.key}: {step.metrics_offset - sent} earlier metric points were not given")
        sent = step.metrics_offset
    for some in batches(step.metrics[sent - step.metrics_offset :], METRICS_PER_BATCH):
        _send_points(call, record, some)
        sent += len(some)
        record.sent["points"] = sent
        if sent < total:
            call.memory.save(record)


def _send_points(call: Call, record: Record, points: Sequence[MetricPoint]) -> None:
    content = [[p.name, repr(p.value), p.step, p.t_ms] for p in points]
    call.once(record, "latest points", content, lambda: _send_all(call, record, points))


def _send_all(call: Call, record: Record, points: Sequence[MetricPoint]) -> None:
    from mlflow.entities import Metric

    for some in batches(points, METRICS_PER_BATCH):
        metrics = [Metric(safe_key(p.name), p.value, p.t_ms, p.step) for p in some]
        call.session.run(f"metrics of {record.key}", lambda c, metrics=metrics: c.log_batch(record.id, metrics=metrics))


def put_summary(call: Call, record: Record, step: StepSnapshot, models: Sequence[str]) -> None:
    """Log final figures, once for each related model.

    A metric that names a model is what puts this run on that model's page: MLflow lists there the runs that logged one.

    Args:
        call: This call.
        record: The step's run.
        step: Has ended.
        models: LoggedModel ids.
    """
    values = dict(step.summary)
    if step.action.startswith("REUSE"):
        values = values or {"reused": 1.0}
    elif step.started_at_ms is not None and step.ended_at_ms is not None:
        values["duration_s"] = (step.ended_at_ms - step.started_at_ms) / 1000
    time_ms = step.ended_at_ms or step.started_at_ms or call.snapshot.started_at_ms
    for model in [*models] or [""]:
        call.once(
            record,
            f"summary {model}",
            [time_ms, {name: repr(value) for name, value in values.items()}],
            lambda model=model: _send_summary(call, record, step, values, model, time_ms),
        )


def _send_summary(
    call: Call, record: Record, step: StepSnapshot, values: Mapping[str, float], model: str, time_ms: int
) -> None:
    from mlflow.entities import Metric

    # after the curve's last point, or the page would show that one as the latest; clocks of two machines may differ
    last = {point.name: (point.step, max(point.t_ms + 1, time_ms)) for point in step.metrics}
    data = step.datasets[0] if len(step.datasets) == 1 else None
    metrics = [
        Metric(
            safe_key(name),
            value,
            last.get(name, (0, time_ms))[1],
            last.get(name, (0, time_ms))[0],
            model_id=model or None,
            dataset_name=data.name if data and model else None,
            dataset_digest=dataset_digest(data) if data and model else None,
            run_id=record.id,
        )
        for name, value in sorted(values.items())
    ]
    for some in batches(metrics, METRICS_PER_BATCH):
        call.session.run(f"summary of {record.key}", lambda c, some=some: c.log_batch(record.id, metrics=some))


def put_headlines(call: Call, run: Record) -> None:
    """Log the final figures of all steps at the execution too (`evaluate/accuracy`), where executions are compared."""
    steps = [step for step in call.snapshot.steps if step.summary and step.ended_at_ms is not None]
    points = [
        MetricPoint(f"{step.name}/{name}", value, 0, step.ended_at_ms or 0)
        for step in steps
        for name, value in sorted(step.summary.items())
    ]
    content = [[p.name, repr(p.value), p.t_ms] for p in points]
    if points:
        call.once(run, "headlines", content, lambda: _send_all(call, run, points))


def dataset_digest(data: Dataset) -> str:
    """Return a digest that MLflow takes: 36 characters at most; the full one is in an input tag."""
    if is_digest(data.digest):
        return hex_of(data.digest)[:DATASET_DIGEST_MAX_CHARS]
    if len(data.digest) > DATASET_DIGEST_MAX_CHARS:
        return hex_of(sha256_bytes(data.digest.encode()))[:DATASET_DIGEST_MAX_CHARS]
    return data.digest or "undeclared"


def put_datasets(call: Call, record: Record, step: StepSnapshot) -> None:
    """Log what a step read; repeating it changes nothing."""
    if not step.datasets:
        return

    def send() -> None:
        inputs = [_dataset_input(data) for data in step.datasets]
        call.session.run(f"datasets of {record.key}", lambda c: c.log_inputs(record.id, datasets=inputs))

    content = [[data.name, data.uri, data.digest, data.context] for data in step.datasets]
    call.once(record, "datasets", content, send)


def _dataset_input(data: Dataset) -> DatasetInput:
    from mlflow.entities import Dataset as MlflowDataset
    from mlflow.entities import DatasetInput, InputTag

    uri = redact_text(data.uri)
    web = uri.startswith(("http://", "https://"))
    source = json.dumps({"url" if web else "uri": uri})
    entity = MlflowDataset(data.name, dataset_digest(data), "http" if web else "local", source)
    tags = {"mlflow.data.context": data.context, "orch.digest": data.digest, "orch.uri": uri}
    pairs = [InputTag(key, value[:INPUT_TAG_MAX_CHARS]) for key, value in tags.items() if value]
    return DatasetInput(entity, pairs)
