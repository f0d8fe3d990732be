"""Export to ONNX at one opset, from which each target's own is made later; what really came out is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.ascend.toolchains import PREFERRED_OPSET
from orchestrator.graph.export import ExportInfo, example_inputs, export_onnx
from orchestrator.steps.api import ONNX, Output, StepContext, StepResult
from orchestrator.steps.model_inputs import tensor_specs, torch_model


def run(ctx: StepContext) -> StepResult:
    """Export the trained model.

    Raises:
        GateError: It does not export.
    """
    folder = ctx.out / "onnx"
    info = export(ctx, torch_model(ctx, ctx.inputs["checkpoint"]), folder)
    return StepResult({"onnx": Output(folder, ONNX)}, facts=info.to_json())


def export(ctx: StepContext, module: Any, folder: Path) -> ExportInfo:
    """Export a module of the recipe into `folder`."""
    inputs, outputs = tensor_specs(ctx)
    return export_onnx(
        module,
        inputs=inputs,
        outputs=outputs,
        example=example_inputs(inputs),
        out=folder,
        opset=int(ctx.spec["model"].get("opset") or PREFERRED_OPSET),
        source_root=ctx.recipe_dir,
    )
