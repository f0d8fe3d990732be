"""Evaluate: the user's own metric on the model; gates are judged on what is stored, not here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from orchestrator.core.errors import GateError, UserCodeError
from orchestrator.steps.api import StepContext, StepResult
from orchestrator.steps.model_inputs import predictor_of
from orchestrator.steps.reports import report
from orchestrator.steps.user_code import load_entrypoint, user_code


def run(ctx: StepContext) -> StepResult:
    """Call `evaluate(predict)` and keep its metrics.

    Raises:
        UserCodeError: It failed, or gave something else than metrics.
        GateError: A metric is NaN or infinite.
    """
    entrypoint = str(ctx.spec["entrypoint"])
    function = load_entrypoint(entrypoint, ctx.recipe_dir)
    predict, model = predictor_of(ctx)
    with user_code(entrypoint, ctx.recipe_dir):
        metrics = _metrics(function(predict), entrypoint)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise GateError(
                f"metric {name} is {value}",
                place=ctx.step,
                hint="look for NaN in the weights or in the evaluation data",
            )
        ctx.events.metric(name, value)
    return StepResult({"report": report(ctx, {"model": model, "metrics": metrics})}, metrics, {"model": model})


def _metrics(found: object, entrypoint: str) -> dict[str, float]:
    if not isinstance(found, Mapping) or not found:
        raise UserCodeError(
            f"{entrypoint} returned {found!r:.80}, expected a mapping of metrics",
            hint="return {'accuracy': 0.98}",
        )
    try:
        return {str(name): float(value) for name, value in cast("Mapping[str, float]", found).items()}
    except (TypeError, ValueError) as error:
        raise UserCodeError(f"{entrypoint} returned a metric that is no number: {error}") from error
