"""Preflight: convertibility depends on the architecture, so the untrained model is exported and checked first."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.ascend.toolchains import allowed_opsets
from orchestrator.graph.export import ExportInfo, example_inputs
from orchestrator.graph.read import inspect_onnx, model_file
from orchestrator.graph.run_onnx import OnnxModel
from orchestrator.graph.spec import check_arrays
from orchestrator.graph.torch_model import build
from orchestrator.steps.api import StepContext, StepResult
from orchestrator.steps.export import export
from orchestrator.steps.model_inputs import targets, tensor_specs
from orchestrator.steps.reports import report


@dataclass(slots=True)
class _Checks:
    """Each check with its evidence, in the order they were made."""

    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def passed(self, check: str, evidence: str) -> None:
        self.rows.append({"check": check, "passed": True, "evidence": evidence})


def run(ctx: StepContext) -> StepResult:
    """Check the untrained model against every target.

    Raises:
        UserCodeError: The factory failed.
        GateError: It does not export, does not load, or does not fit the recipe or a target; nothing was trained yet.
    """
    checks = _Checks()
    ctx.events.progress(0, 3, "export the untrained model")
    module = build(str(ctx.spec["model"]["factory"]), ctx.recipe_dir).eval()
    folder = ctx.work / "preflight"
    info = export(ctx, module, folder)
    checks.passed("exports", f"{info.exporter} exporter, {info.node_count} nodes")
    _check_opset(ctx, info, checks)
    ctx.events.progress(1, 3, "load it in ONNX Runtime")
    _check_runs(ctx, checks, model_file(folder))
    ctx.events.progress(3, 3, "")
    parameters = sum(int(tensor.numel()) for tensor in module.parameters())
    facts = {**info.to_json(), "parameters": parameters}
    return StepResult({"report": report(ctx, {"checks": checks.rows, "facts": facts})}, facts=facts)


def _check_opset(ctx: StepContext, info: ExportInfo, checks: _Checks) -> None:
    asked = targets(ctx)
    allowed = allowed_opsets(asked)
    names = ", ".join(target.name for target in asked) or "no target"
    checks.passed("opset", f"read back {info.opset}; {names} parse {allowed}")


def _check_runs(ctx: StepContext, checks: _Checks, path: Path) -> None:
    inputs, outputs = tensor_specs(ctx)
    graph = inspect_onnx(path)
    operators = ", ".join(f"{op} {count}" for op, count in sorted(graph.op_counts.items()))
    checks.passed("reads back", f"opset {graph.opset}, IR {graph.ir_version}: {operators}")
    model = OnnxModel(path)
    answer = model(example_inputs(inputs))
    check_arrays(outputs, answer, "what the exported model computes")
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in answer.items())
    checks.passed("runs", f"outputs {shapes}")
