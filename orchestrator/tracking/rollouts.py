"""One move of an endpoint as a run in its recipe's experiment: who, why, how the weights went, and on what evidence."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final

from orchestrator.core.digests import short
from orchestrator.core.redact import redact, redact_text
from orchestrator.tracking.call import Call, Record
from orchestrator.tracking.execution import ensure_experiment, put_note
from orchestrator.tracking.limits import METRICS_PER_BATCH, batches, safe_key
from orchestrator.tracking.models import put_inputs, record_key
from orchestrator.tracking.pages import experiment_page, run_page
from orchestrator.tracking.registry import registered_name
from orchestrator.tracking.rollout_snapshot import RolloutSnapshot
from orchestrator.tracking.runs import ensure_run, put_params, put_status, put_tags, put_text
from orchestrator.tracking.snapshot import ExecutionSnapshot, MetricPoint

_MAX_EVIDENCE_CHARS: Final = 16 << 20
_STATES: Final = {"succeeded": "succeeded", "aborted": "failed"}


def rollout_key(endpoint: str, generation: int) -> str:
    """Return the key of a move's run."""
    return f"rollout:{endpoint}/{generation}"


def as_execution(recipe: str, actor: str, at_ms: int, execution: str = "") -> ExecutionSnapshot:
    """Return the frame that the parts of a call ask for their recipe and user."""
    return ExecutionSnapshot(execution, recipe, "", "", None, "running", at_ms, user=actor)


def mirror_rollout(call: Call, move: RolloutSnapshot) -> None:
    """Bring the run of a move to the snapshot."""
    call.experiment_id = ensure_experiment(call)
    call.urls["experiment"] = experiment_page(call.experiment_id)
    name = f"{move.kind} {move.endpoint} {move.stable or 'none'} -> {move.generation}"
    key = rollout_key(move.endpoint, move.generation)
    run = ensure_run(call, key, name, {"orch.kind": "rollout"}, move.started_at_ms)
    call.run_ids["rollout"] = run.id
    call.urls["rollout"] = run_page(call.experiment_id, run.id)
    with call.keeping(run):
        put_tags(call, run, _tags(move))
        put_params(call, run, _params(move))
        models = _models(call, move)
        put_inputs(call, run, models)
        _put_points(call, run, move.points)
        if move.ended:
            _put_figures(call, run, move, models)
            _put_evidence(call, run, move)
        if move.plot:
            put_text(call, run, "evidence.svg", move.plot)
        put_note(call, run, _note(move))
        put_status(call, run, _STATES.get(move.state, "running"), move.ended_at_ms)
    call.remove_doubles()


def _tags(move: RolloutSnapshot) -> dict[str, str]:
    tags = {
        "orch.recipe": move.recipe,
        "orch.exec": move.execution,
        "orch.endpoint": move.endpoint,
        "orch.generation": str(move.generation),
        "orch.previous": str(move.stable),
        "orch.pool": move.pool,
        "orch.site": move.site,
        "orch.bundle": move.bundle,
        "orch.variant": move.variant,
        "orch.device": move.device,
        "orch.state": move.state,
        "orch.verdict": str((move.verdict or {}).get("state", "")),
        "orch.error": move.error,
        "orch.approved_by": ", ".join(str(a.get("identity")) for a in move.approvals if a.get("decision") == "approve"),
        "mlflow.source.name": f"orchestrate {move.kind} --endpoint {move.endpoint}",
        "mlflow.source.type": "PROJECT",
    }
    return {key: value for key, value in tags.items() if value}


def _params(move: RolloutSnapshot) -> dict[str, str]:
    params = {
        "endpoint": move.endpoint,
        "kind": move.kind,
        "from_generation": str(move.stable),
        "to_generation": str(move.generation),
        "strategy": str((move.strategy or {}).get("kind", "direct")),
        "strategy_digest": move.strategy_digest,
        "actor": move.actor,
        "reason": move.reason,
        "bundle": move.bundle,
    }
    return {key: value for key, value in params.items() if value}


def _models(call: Call, move: RolloutSnapshot) -> list[str]:
    """Return the ids of the bundle's LoggedModels, as the projection of the execution that made them left them."""
    found: list[str] = []
    for model in move.models:
        known = call.memory.record(record_key(call, model.digest)).id
        version = call.memory.record(f"version:{registered_name(move.recipe, model.kind)}:{model.digest}").id
        if known and (version or model.optional or not move.expected):
            found.append(known)
        elif move.expected and not model.optional:
            call.later.append(f"{model.kind} {short(model.digest)} is not in MLflow yet")
    return found


def _put_points(call: Call, run: Record, points: Sequence[MetricPoint]) -> None:
    """Send the points of which the time has not been sent; one that is sent again changes nothing."""
    sent_ms = int(run.sent.get("points_ms", -1))
    fresh = [point for point in points if point.t_ms > sent_ms and math.isfinite(point.value)]
    for some in batches(fresh, METRICS_PER_BATCH):
        _send(call, run, some)
    if fresh:
        run.sent["points_ms"] = max(point.t_ms for point in fresh)


def _send(call: Call, run: Record, points: Sequence[MetricPoint], model: str = "") -> None:
    from mlflow.entities import Metric

    metrics = [
        Metric(safe_key(p.name), p.value, p.t_ms, p.step, model_id=model or None, run_id=run.id if model else None)
        for p in points
    ]
    call.session.run(f"metrics of {run.key}", lambda c: c.log_batch(run.id, metrics=metrics))


def _put_figures(call: Call, run: Record, move: RolloutSnapshot, models: Sequence[str]) -> None:
    """Log the final figures once for each model: that is what puts the move on the model's page."""
    at_ms = move.ended_at_ms or move.started_at_ms
    values = {**move.figures, "duration_s": (at_ms - move.started_at_ms) / 1000}
    points = [MetricPoint(name, value, 0, at_ms) for name, value in sorted(values.items()) if math.isfinite(value)]
    for model in models or [""]:
        content = [[p.name, repr(p.value), p.t_ms] for p in points]
        call.once(run, f"figures {model}", content, lambda model=model: _send(call, run, points, model))


def _put_evidence(call: Call, run: Record, move: RolloutSnapshot) -> None:
    whole: dict[str, Any] = {
        "endpoint": move.endpoint,
        "generation": move.generation,
        "stable": move.stable,
        "kind": move.kind,
        "state": move.state,
        "bundle": move.bundle,
        "strategy": move.strategy,
        "strategy_digest": move.strategy_digest,
        "verdict": move.verdict,
        "approvals": list(move.approvals),
        "error": move.error,
        "rows": len(move.evidence),
    }
    text = _json({**whole, "evidence": list(move.evidence)})
    if len(text) > _MAX_EVIDENCE_CHARS:
        text = _json({**whole, "evidence": f"{len(text)} characters, too long for a page: the ledger has it"})
    put_text(call, run, "evidence.json", text)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(redact(value), indent=1, sort_keys=True, default=str) + "\n"


def _note(move: RolloutSnapshot) -> str:
    lines = [
        f"**{move.kind}** of `{move.endpoint}` from generation {move.stable or 'none'} to {move.generation}: {move.state}",
        "",
        "| | |",
        "|---|---|",
        f"| bundle | `{move.bundle}` |",
        f"| pool | {move.pool} of {move.site}, {move.device} |",
        f"| asked by | {_cell(move.actor)} |",
    ]
    lines += [f"| reason | {_cell(move.reason)} |"] if move.reason else []
    for approval in move.approvals:
        lines.append(f"| {_cell(str(approval.get('decision')))} | {_cell(str(approval.get('identity')))} |")
    lines += [f"\n{_cell(move.error)}"] if move.error else []
    metrics: Any = (move.verdict or {}).get("metrics") or ()
    lines += [f"\n- {_cell(str(metric.get('text', '')))}" for metric in metrics if metric.get("text")]
    if move.ended and move.evidence:
        lines.append("\nEvidence: artifacts `evidence.json` and `evidence.svg`.")
    return redact_text("\n".join(lines) + "\n")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:600]
