"""Bundle: the release unit, with golden samples and what the trained model answered to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from orchestrator.bundle.golden import write_golden
from orchestrator.bundle.oci import BundleParts, build_layout
from orchestrator.core.files import regular_files
from orchestrator.core.manifest import MANIFEST_NAME
from orchestrator.graph.export import example_inputs
from orchestrator.graph.run_onnx import OnnxModel
from orchestrator.graph.spec import TensorSpec
from orchestrator.steps.api import BUNDLE, Output, StepContext, StepResult
from orchestrator.steps.bundle_serve import serve_files
from orchestrator.steps.model_inputs import Array, predictor_of, real_samples

_FORECAST: Final = "forecast-"
"""Inputs of this name are forecasts; what follows is the target."""


def run(ctx: StepContext) -> StepResult:
    """Pack ONNX, weights, golden samples and reference outputs into an OCI layout.

    Raises:
        UserCodeError: `samples` or a stage of `serve:` failed.
        GateError: A sample does not fit, a reference output is not finite, or a file cannot be carried.
    """
    onnx = ctx.inputs["onnx"]
    graph = OnnxModel(onnx / "model.onnx")
    inputs, real = _inputs(ctx, graph.inputs)
    predict, reference = predictor_of(ctx)
    golden_file = ctx.out / "golden.safetensors"
    golden = write_golden(golden_file, inputs, predict(inputs))
    weights = ctx.inputs.get("checkpoint")
    card = _card(ctx, graph, golden.count, real=real, reference=reference)
    parts = BundleParts(
        name=str(ctx.spec["name"]),
        onnx=onnx,
        golden=golden_file,
        card=card,
        model=weights / "model.safetensors" if weights is not None else None,
        extra=_forecasts(ctx) | serve_files(ctx, card, inputs, predict),
    )
    folder = ctx.out / "bundle"
    digest = build_layout(parts, folder)
    facts = {"bundle": digest, "golden_samples": golden.count, "golden_real": real, "reference": reference}
    return StepResult({"bundle": Output(folder, BUNDLE)}, facts=facts)


def _inputs(ctx: StepContext, specs: tuple[TensorSpec, ...]) -> tuple[dict[str, Array], bool]:
    """Return golden inputs, and whether they are the user's; without `samples` they are synthetic and said to be."""
    if ctx.spec.get("samples"):
        return real_samples(ctx, specs), True
    return example_inputs(specs, batch=int(ctx.spec["samples_count"])), False


def _forecasts(ctx: StepContext) -> dict[str, Path]:
    """Return what was foreseen for each target: `forecast/<target>/<file>` -> file."""
    found: dict[str, Path] = {}
    for name, folder in ctx.inputs.items():
        if name.startswith(_FORECAST):
            files = [path for path in regular_files(folder) if path.name != MANIFEST_NAME]
            found |= {f"forecast/{name.removeprefix(_FORECAST)}/{path.relative_to(folder)}": path for path in files}
    return found


def _card(ctx: StepContext, graph: OnnxModel, count: int, *, real: bool, reference: str) -> dict[str, Any]:
    evaluation = ctx.inputs.get("evaluation")
    return {
        "name": ctx.spec["name"],
        "description": ctx.spec["description"],
        "inputs": [spec.to_json() for spec in graph.inputs],
        "outputs": [spec.to_json() for spec in graph.outputs],
        "opset": graph.info.opset,
        "metrics": _metrics(evaluation) if evaluation is not None else {},
        "targets": ctx.spec["targets"],
        "golden": {"count": count, "samples": "real" if real else "synthetic", "reference": reference},
        "numpy": np.__version__,
    }


def _metrics(evaluation: Path) -> dict[str, float]:
    return dict(json.loads((evaluation / "report.json").read_bytes())["metrics"])
