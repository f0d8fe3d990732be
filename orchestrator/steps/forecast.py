"""Forecast: the graph as its target reads it, what the target's precision does to it on real samples, and its twin."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from orchestrator.ascend.precision import Policy, policy
from orchestrator.core.errors import GateError, UserCodeError
from orchestrator.core.files import write_json
from orchestrator.graph.forecast.batches import fitted, nonfinite
from orchestrator.graph.forecast.files import write_forecast
from orchestrator.graph.forecast.forecast import forecast
from orchestrator.graph.forecast.result import Forecast, Numbers
from orchestrator.graph.parity import EXACT_DB
from orchestrator.graph.prepare import PREPARED_JSON
from orchestrator.graph.read import MODEL_ONNX, inspect_onnx, model_file, write_onnx_json
from orchestrator.graph.twin.write import write_twin
from orchestrator.graph.verdict import thresholds_for
from orchestrator.steps.api import ONNX, TWIN, Output, StepContext, StepResult
from orchestrator.steps.model_inputs import Predict, real_samples
from orchestrator.steps.preflight_targets import TargetCheck, check_target, refusal, warnings
from orchestrator.steps.reports import report
from orchestrator.steps.user_metrics import user_metrics

COVERAGE_JSON = "coverage.json"


def run(ctx: StepContext) -> StepResult:
    """Rewrite the graph for the target, judge its operators, foresee its numbers, choose what stays in fp32.

    Raises:
        UserCodeError: `samples` or `evaluate` failed, or a sample has NaN or infinity.
        PlanError: The target asks for what its SoC does not have.
        GateError: An operator does not convert, or the forecast says no; `details` name every node behind it.
    """
    target: Mapping[str, Any] = ctx.spec["target"]
    rules = policy(target.get("soc"), str(target.get("precision") or "fp16"))
    ctx.events.progress(0, 100, "rewrite the graph for the target and judge its operators")
    source = model_file(ctx.inputs["onnx"])
    check = check_target(source, target, ctx.work)
    refused = refusal(ctx.step, [check])
    if refused is not None:
        raise refused
    for line in warnings(check):
        ctx.events.message(f"warning: {line}")
    graph = _graph(ctx, check, source)
    found = _forecast(ctx, target, graph, rules)
    written = _report(ctx, check, found)
    twin = ctx.out / "twin"
    write_twin(graph, twin, rules, keep=found.keep.nodes)
    write_onnx_json(twin, inspect_onnx(twin / MODEL_ONNX), "source")
    metrics = _metrics(found)
    for name, value in metrics.items():
        ctx.events.metric(name, value)
    for reason in found.reasons:
        ctx.events.message(f"{found.verdict}: {reason}")
    if found.verdict == "no":
        raise _no(ctx, found, written.folder)
    facts = {
        "verdict": found.verdict, "status": found.status, "reasons": list(found.reasons), "samples": found.samples,
        "keep": list(found.keep.nodes), "policy": rules.to_json(), "first_bad": found.first_bad_cumulative,
    }  # fmt: skip
    outputs = {"graph": Output(graph.parent, ONNX), "twin": Output(twin, TWIN), "report": written}
    return StepResult(outputs, metrics, facts)


def _graph(ctx: StepContext, check: TargetCheck, source: Path) -> Path:
    """Put the target's graph into the step's output; without a converting toolchain it is the export itself."""
    folder = ctx.out / "graph"
    origin = source if check.prepared is None else check.prepared.path
    folder.mkdir(parents=True)
    info = inspect_onnx(origin)
    for name in (origin.name, *info.external_files):
        shutil.copyfile(origin.parent / name, folder / (MODEL_ONNX if name == origin.name else name))
    made = inspect_onnx(folder / MODEL_ONNX)
    write_onnx_json(folder, made, "source")
    return folder / MODEL_ONNX


def _forecast(ctx: StepContext, target: Mapping[str, Any], graph: Path, rules: Policy) -> Forecast:
    given = real_samples(ctx, inspect_onnx(model_file(ctx.inputs["onnx"])).inputs) if ctx.spec.get("samples") else None
    bad = None if given is None else nonfinite(given)
    if bad is not None:
        hint = "correct or leave out such samples: on them no network can be judged"
        raise UserCodeError(f"{ctx.spec['samples']}: {bad}", place=ctx.step, hint=hint)
    samples = None if given is None else fitted(given, inspect_onnx(graph).inputs)
    entrypoint = ctx.spec.get("evaluate")

    def evaluate(predict: Predict) -> Mapping[str, float]:
        return user_metrics(ctx, str(entrypoint), predict)

    limits = cast("Mapping[str, Any]", ctx.spec.get("parity") or {})
    return forecast(
        graph,
        policy=rules,
        samples=samples,
        thresholds=thresholds_for(rules.name, limits),
        limits=[name for name, value in limits.items() if value is not None],
        evaluate=evaluate if entrypoint else None,
        keep=cast("Literal['auto', 'none'] | list[str]", target.get("keep") or "auto"),
        scratch=ctx.work,
        progress=lambda done, text: ctx.events.progress(round(100 * done), 100, text),
        name=f"{ctx.recipe_dir.resolve().name}, target {target['name']}: {graph.name}",
    )


def _report(ctx: StepContext, check: TargetCheck, found: Forecast) -> Output:
    written = report(ctx, {"target": check.name, "verdict": found.verdict, "reasons": list(found.reasons)})
    write_forecast(found, written.folder)
    if check.prepared is not None:
        shutil.copyfile(check.prepared.path.parent / PREPARED_JSON, written.folder / PREPARED_JSON)
    if check.coverage is not None:
        write_json(written.folder / COVERAGE_JSON, check.coverage.to_json())
    return written


def _metrics(found: Forecast) -> dict[str, float]:
    after, cost = found.after, found.after.cost
    named: dict[str, float | None] = {
        **_figures(after),
        "before.sqnr_db": _figures(found.before)["sqnr_db"],
        "must_keep": float(len(found.keep.must)),
        "should_keep": float(len(found.keep.should)),
        "cannot_keep": float(len(found.keep.cannot)),
        "cost_flops_share": cost.flops_share,
        "casts_added": float(cost.casts_added),
        "casts_removed": float(cost.casts_removed),
        "bytes_added": float(cost.bytes_added),
    }
    for name, value in after.task.items():
        named[f"task.{name}"] = value
        named[f"task_drop.{name}"] = found.reference_task[name] - value
    return {name: float(value) for name, value in named.items() if value is not None and math.isfinite(value)}


def _figures(numbers: Numbers) -> dict[str, float | None]:
    """Return the numbers of the worst output; identical ones have an infinite SQNR, which is left out."""
    sqnr = numbers.sqnr_db
    return {"sqnr_db": None if sqnr >= EXACT_DB else sqnr, "cosine": numbers.cosine, "top1": numbers.top1}


def _no(ctx: StepContext, found: Forecast, folder: Path) -> GateError:
    """Return the error; the report is copied to where a failed attempt leaves its traces."""
    kept = ctx.work / "report"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept)
    proved = [one for one in found.keep.proposals if one.status == "proved"]
    hint = "the page forecast.html shows where; a mode that rounds less (cube_fp16in_fp32out, mixed_float16), or "
    hint += "the scaling that the report proposes" if proved else "what the report says of the first bad tensor"
    details: dict[str, object] = {
        "verdict": found.verdict, "reasons": list(found.reasons), "nodes": list(found.offending),
        "first_bad": {"local": found.first_bad_local, "cumulative": found.first_bad_cumulative},
        "minimum": {name: None if m is None else dict(m) for name, m in found.minimum.items()},
        "proposals": [one.to_json() for one in found.keep.proposals], "report": str(kept),
    }  # fmt: skip
    return GateError("; ".join(found.reasons), place=ctx.step, hint=hint, details=details)
