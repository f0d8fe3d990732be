"""Preflight: convertibility depends on the architecture, so the untrained model is exported and checked first."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.graph.export import example_inputs
from orchestrator.graph.read import inspect_onnx, model_file
from orchestrator.graph.run_onnx import OnnxModel
from orchestrator.graph.spec import check_arrays
from orchestrator.graph.torch_model import build
from orchestrator.steps.api import StepContext, StepResult
from orchestrator.steps.bundle_serve import try_stages
from orchestrator.steps.export import export
from orchestrator.steps.model_inputs import real_samples, tensor_specs
from orchestrator.steps.preflight_targets import TargetCheck, check_target, refusal, warnings
from orchestrator.steps.reports import report


@dataclass(slots=True)
class _Checks:
    """Each check with its evidence, in the order they were made."""

    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def add(self, check: str, evidence: str, *, passed: bool = True) -> None:
        self.rows.append({"check": check, "passed": passed, "evidence": evidence})


def run(ctx: StepContext) -> StepResult:
    """Check the untrained model against every target.

    Raises:
        UserCodeError: The factory failed, or `samples` or a stage of `serve:` does, or its first sample does not fit.
        GateError: It does not export, does not load, or does not fit the recipe or a target; nothing was trained yet.
    """
    checks, asked = _Checks(), list(ctx.spec.get("targets", ()))
    total = 2 + len(asked)
    ctx.events.progress(0, total, "export the untrained model")
    module = build(str(ctx.spec["model"]["factory"]), ctx.recipe_dir).eval()
    folder = ctx.work / "preflight"
    info = export(ctx, module, folder)
    checks.add("exports", f"{info.exporter} exporter, opset {info.opset} read back, {info.node_count} nodes")
    ctx.events.progress(1, total, "load it in ONNX Runtime")
    _check_runs(ctx, checks, model_file(folder))
    if ctx.spec.get("samples"):
        sample = real_samples(ctx, tensor_specs(ctx)[0])
        checks.add("samples", ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in sample.items()))
    if ctx.spec.get("serve"):
        checks.add("stages", try_stages(ctx, *tensor_specs(ctx)))
    found: list[TargetCheck] = []
    for number, target in enumerate(asked):
        ctx.events.progress(2 + number, total, f"target {target['name']}")
        found.append(_check_target(ctx, checks, model_file(folder), target))
    ctx.events.progress(total, total, "")
    parameters = sum(int(tensor.numel()) for tensor in module.parameters())
    facts = {**info.to_json(), "parameters": parameters, "targets": {check.name: check.evidence for check in found}}
    body = {"checks": checks.rows, "targets": {check.name: check.to_json() for check in found}, "facts": facts}
    written = report(ctx, body)
    refused = refusal(ctx.step, found)
    if refused is not None:
        raise refused
    return StepResult({"report": written}, facts=facts)


def _check_target(ctx: StepContext, checks: _Checks, graph: Path, target: dict[str, Any]) -> TargetCheck:
    check = check_target(graph, target, ctx.work / "prepared")
    checks.add(check.name, check.evidence, passed=not check.refused and not check.failure)
    for warning in warnings(check):
        ctx.events.message(warning)
    return check


def _check_runs(ctx: StepContext, checks: _Checks, path: Path) -> None:
    inputs, outputs = tensor_specs(ctx)
    graph = inspect_onnx(path)
    operators = ", ".join(f"{op} {count}" for op, count in sorted(graph.op_counts.items()))
    checks.add("reads back", f"opset {graph.opset}, IR {graph.ir_version}: {operators}")
    model = OnnxModel(path)
    answer = model(example_inputs(inputs))
    check_arrays(outputs, answer, "what the exported model computes")
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in answer.items())
    checks.add("runs", f"outputs {shapes}")
