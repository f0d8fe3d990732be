"""Parity: torch against ONNX on real samples. Metrics first, then the verdict (DESIGN D10)."""

from __future__ import annotations

import math
from typing import Any

from orchestrator.core.errors import GateError
from orchestrator.graph.parity import EXACT_DB, OutputMetrics, compare
from orchestrator.graph.run_onnx import OnnxModel
from orchestrator.graph.torch_model import predictor
from orchestrator.graph.verdict import Thresholds, Verdict, judge
from orchestrator.steps.api import StepContext, StepResult
from orchestrator.steps.model_inputs import real_samples, tensor_specs, torch_model
from orchestrator.steps.reports import report


def run(ctx: StepContext) -> StepResult:
    """Run both models on the same samples and judge the worst one.

    Raises:
        GateError: They differ by more than an fp32 export may; says by how much, and what would have passed.
    """
    inputs, outputs = tensor_specs(ctx)
    samples = real_samples(ctx, inputs)
    reference = predictor(torch_model(ctx, ctx.inputs["checkpoint"]), [spec.name for spec in outputs])(samples)
    candidate = OnnxModel(ctx.inputs["onnx"] / "model.onnx")(samples)
    found = compare(reference, candidate)
    verdict = judge(found, Thresholds(), saturating=False)
    count = len(next(iter(samples.values())))
    body: dict[str, Any] = {
        "samples": count,
        "reference": "torch",
        "candidate": "onnx (onnxruntime, CPU, fp32)",
        "metrics": {name: metrics.to_json() for name, metrics in found.items()},
        "verdict": verdict.to_json(),
    }
    written = report(ctx, body)
    metrics = {key: value for name, output in found.items() for key, value in _figures(name, output).items()}
    for name, value in metrics.items():
        ctx.events.metric(name, value)
    if not verdict.passed:
        raise _refusal(ctx.step, verdict)
    return StepResult({"report": written}, metrics, {"samples": count, "verdict": verdict.to_json()})


def _figures(name: str, output: OutputMetrics) -> dict[str, float]:
    """Return the finite figures of an output; identical outputs have an infinite SQNR, which is left out."""
    figures = {
        f"max_abs.{name}": output.max_abs,
        f"sqnr_db.{name}": output.worst_sqnr_db,
        f"cosine.{name}": output.worst_cosine,
        f"top1.{name}": output.top1_agreement,
    }
    if output.worst_sqnr_db >= EXACT_DB:
        del figures[f"sqnr_db.{name}"]
    return {key: value for key, value in figures.items() if value is not None and math.isfinite(value)}


def _refusal(step: str, verdict: Verdict) -> GateError:
    return GateError(
        "; ".join(reason.text for reason in verdict.reasons),
        place=step,
        hint="the export computes something else: look for dropout, data-dependent branches or custom operators",
        details=verdict.to_json(),
    )
