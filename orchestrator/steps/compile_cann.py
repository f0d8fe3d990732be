"""Target `onnx` with a SoC: onnxruntime's CANN provider, which compiles by itself, once per shape, when it first runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from orchestrator.ascend.cann_provider import PROVIDER, open_and_run, provider_options
from orchestrator.ascend.gears import buckets, plan_shapes
from orchestrator.graph.read import inspect_onnx
from orchestrator.steps.compile_job import KEEP_DTYPE, Built, CompileJob, Skipped, copy_graph

NO_TOOL: Final = "no onnxruntime-cann on this site: `tools.onnxruntime_cann_python` is not set"
_NAME: Final = "onnxruntime-cann"


def build(job: CompileJob) -> Built | Skipped:
    """Open the graph with the CANN provider, run every bucket so that it compiles, and keep what it compiled.

    Raises:
        PlanError: A size that varies is not settled, or an option does not exist.
        InternalError: The other interpreter broke.
    """
    inputs = inspect_onnx(job.graph).inputs
    shapes = plan_shapes(inputs, job.shapes)
    options = provider_options(job.options, job.precision)
    rows = buckets(inputs, shapes)
    facts: dict[str, object] = {
        "shapes": shapes.to_json(),
        "provider_options": options,
        "buckets": rows,
        "warnings": [],
    }
    warnings: list[str] = []
    if job.keep_file(KEEP_DTYPE) is not None:
        warnings.append(
            "the CANN provider has no list of nodes to keep in fp32; use precision mixed_float16 or format om"
        )
    facts["warnings"] = warnings
    python = job.tools.get("onnxruntime_cann_python")
    if python is None:
        return Skipped(NO_TOOL, {"name": _NAME, "version": "none"}, facts, shapes.gears)
    answer = open_and_run(
        Path(python).expanduser(), job.graph, options, rows, work=job.work, timeout_s=job.timeout_s,
        on_tick=lambda elapsed, _line: job.tell(elapsed, "onnxruntime-cann is compiling"),
    )  # fmt: skip
    toolchain = {"name": _NAME, "version": answer.version}
    if not answer.in_use:
        return Skipped(answer.why_not, toolchain, facts, shapes.gears)
    elsewhere = {provider: count for provider, count in answer.nodes.items() if provider != PROVIDER}
    if elsewhere:
        warnings.append(f"{sum(elsewhere.values())} nodes run elsewhere, with a copy at every border: {elsewhere}")
    copy_graph(job.graph, job.out)
    for file in answer.files:
        (job.out / "cache").mkdir(exist_ok=True)
        shutil.copyfile(file, job.out / "cache" / file.name)
    facts["nodes"] = dict(answer.nodes)
    metrics = {
        "compile_s": sum(float(run["elapsed_s"]) for run in answer.runs),
        "nodes_elsewhere": float(sum(elsewhere.values())),
    }
    return Built("onnx-cann", toolchain, shapes.gears, facts, metrics)
