"""Compile: a bundle becomes a variant for one target. Without the compiler the twin stands in, and says so."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol, cast

from orchestrator.ascend.toolchains import Target, toolchain
from orchestrator.bundle.unpack import bundle_digest, unpack
from orchestrator.bundle.variant import VARIANT, Runtime, Variant, write_variant
from orchestrator.core.errors import IntegrityError
from orchestrator.graph.read import inspect_onnx, model_file
from orchestrator.recipe.compile_options import CompileOptions
from orchestrator.steps.api import Output, StepContext, StepResult
from orchestrator.steps.compile_job import Built, CompileJob, Skipped, copy_files, copy_graph

COMPILERS: Final[Mapping[str, str]] = {
    "atc": "orchestrator.steps.compile_om",
    "mindspore-lite": "orchestrator.steps.compile_mindir",
    "cann-ep": "orchestrator.steps.compile_cann",
    "onnx": "orchestrator.steps.compile_onnx",
    "torch": "orchestrator.steps.compile_torch",
}
"""Toolchain -> module with `build(job) -> Built | Skipped`; imported only when a target needs it."""


class Compiler(Protocol):
    """What such a module exports as `build`."""

    def __call__(self, job: CompileJob) -> Built | Skipped:
        """Put the files into `job.out`, or say why there are none."""
        ...


def compiler(key: str) -> Compiler:
    """Return the compiler of a toolchain."""
    return cast("Compiler", importlib.import_module(COMPILERS[key]).build)


def run(ctx: StepContext) -> StepResult:
    """Compile the target's graph.

    Raises:
        PlanError: Its options do not go together.
        GateError: The compiler refuses the graph; names the node and the user's line where it can.
        InternalError: The compiler crashed, hung, ran out of memory or left no file.
    """
    target = dict(ctx.spec["target"])
    job = _job(ctx, target)
    key = toolchain(Target(str(target["name"]), str(target["format"]), target.get("soc"))).key
    outcome = compiler(key)(job)
    variant = write_variant(_variant(ctx, target, job, outcome))
    rehearsal = _rehearsal(ctx, variant, job)
    if isinstance(outcome, Skipped):
        ctx.events.message(f"SKIPPED: {outcome.reason}; {variant.runtime} stands in as a rehearsal")
    for warning in variant.facts.get("warnings", ()):
        ctx.events.message(f"warning: {warning}")
    metrics = {"size_bytes": float(variant.files.size_bytes), **(outcome.metrics if isinstance(outcome, Built) else {})}
    for name, value in metrics.items():
        ctx.events.metric(name, value)
    facts = {
        "variant": variant.digest, "bundle": variant.bundle, "runtime": variant.runtime, "compiled": variant.compiled,
        "rehearsal": variant.rehearsal, "skipped": variant.skipped, "toolchain": dict(variant.toolchain),
    }  # fmt: skip
    outputs = {"variant": Output(job.out, VARIANT), "rehearsal": Output(rehearsal, VARIANT)}
    return StepResult(outputs, metrics, facts)


def _job(ctx: StepContext, target: Mapping[str, Any]) -> CompileJob:
    out = ctx.out / "variant"
    out.mkdir(parents=True)
    graph = ctx.inputs.get("graph") or ctx.inputs.get("onnx")
    if graph is None:
        raise IntegrityError("a compilation without a graph", place=ctx.step, hint="run the steps before it again")
    options = CompileOptions.model_validate(target.get("compile") or {})
    timeout = ctx.spec.get("timeout_s")
    if timeout is not None and options.timeout is None:
        options = options.model_copy(update={"timeout": float(timeout)})
    unpacked = unpack(ctx.inputs["bundle"], ctx.work / "bundle") if target["format"] == "torch" else None
    return CompileJob(
        target=str(target["name"]), soc=target.get("soc"), precision=str(target.get("precision", "fp16")),
        shapes=target.get("shapes") or {}, options=options, graph=model_file(graph), forecast=ctx.inputs.get("forecast"), out=out,
        work=ctx.work, cache=ctx.site.state / "cache", tools=ctx.spec.get("tools") or {}, tell=_teller(ctx, options),
        model=ctx.spec.get("model") or {}, recipe_dir=ctx.recipe_dir, bundle=unpacked,
    )  # fmt: skip


def _teller(ctx: StepContext, options: CompileOptions) -> Callable[[float, str], None]:
    limit = options.timeout or 0.0
    return lambda elapsed, line: ctx.events.progress(elapsed, max(limit, elapsed), line)


def _variant(ctx: StepContext, target: Mapping[str, Any], job: CompileJob, outcome: Built | Skipped) -> Variant:
    runtime, skipped = (outcome.runtime, None) if isinstance(outcome, Built) else (_stand_in(ctx, job), outcome.reason)
    info = inspect_onnx(job.graph)
    return Variant(
        folder=job.out, bundle=bundle_digest(ctx.inputs["bundle"]), target=job.target, format=str(target["format"]),
        soc=job.soc, precision=job.precision, runtime=runtime, toolchain=outcome.toolchain,
        rehearsal=skipped is not None, compiled=skipped is None, skipped=skipped,
        inputs=[spec.to_json() for spec in info.inputs], outputs=[spec.to_json() for spec in info.outputs],
        gears=outcome.gears, facts=outcome.facts,
    )  # fmt: skip


def _rehearsal(ctx: StepContext, variant: Variant, job: CompileJob) -> Path:
    """Return the folder of what a pool without the device serves: this very variant, or the twin beside a compiled one."""
    folder = ctx.out / "rehearsal"
    if variant.rehearsal:
        shutil.copytree(variant.folder, folder)
        return folder
    folder.mkdir()
    beside = replace(job, out=folder)
    stand_in = replace(
        variant,
        folder=folder,
        runtime=_stand_in(ctx, beside),
        rehearsal=True,
        compiled=False,
        skipped="compiled for the device; this is its rehearsal",
        facts={},
    )
    write_variant(stand_in)
    return folder


def _stand_in(ctx: StepContext, job: CompileJob) -> Runtime:
    """Copy the twin, or the plain graph where there was no forecast (torch)."""
    twin = ctx.inputs.get("twin")
    if twin is None:
        copy_graph(job.graph, job.out)
        return "onnx-cpu"
    copy_files(twin, job.out)
    return "twin"
