"""The user's own metric, `evaluate(predict) -> {metric: float}`: the same for torch, ONNX, twin and device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from orchestrator.core.errors import GateError, UserCodeError
from orchestrator.steps.api import StepContext
from orchestrator.steps.model_inputs import Predict
from orchestrator.steps.user_code import load_entrypoint, user_code


def user_metrics(ctx: StepContext, entrypoint: str, predict: Predict) -> dict[str, float]:
    """Call `evaluate(predict)` and return its metrics, all finite.

    Raises:
        UserCodeError: It failed, or gave something else than metrics.
        GateError: A metric is NaN or infinite.
    """
    function = load_entrypoint(entrypoint, ctx.recipe_dir)
    with user_code(entrypoint, ctx.recipe_dir):
        metrics = _metrics(function(predict), entrypoint)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise GateError(
                f"metric {name} is {value}",
                place=ctx.step,
                hint="look for NaN in the weights or in the evaluation data",
            )
    return metrics


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
