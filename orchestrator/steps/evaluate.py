"""Evaluate: the user's own metric on the model; gates are judged on what is stored, not here."""

from __future__ import annotations

from orchestrator.steps.api import StepContext, StepResult
from orchestrator.steps.model_inputs import predictor_of
from orchestrator.steps.reports import report
from orchestrator.steps.user_metrics import user_metrics


def run(ctx: StepContext) -> StepResult:
    """Call `evaluate(predict)` and keep its metrics.

    Raises:
        UserCodeError: It failed, or gave something else than metrics.
        GateError: A metric is NaN or infinite.
    """
    predict, model = predictor_of(ctx)
    metrics = user_metrics(ctx, str(ctx.spec["entrypoint"]), predict)
    for name, value in metrics.items():
        ctx.events.metric(name, value)
    return StepResult({"report": report(ctx, {"model": model, "metrics": metrics})}, metrics, {"model": model})
