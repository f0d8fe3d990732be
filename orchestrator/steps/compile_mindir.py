"""Target `mindir`: MindSpore Lite's converter in its own interpreter.

Without CANN it makes the general form, which runs on a CPU: that is no compilation for the SoC. It goes along with the twin
as `model.mindir`, so that parity can hold both against the ONNX graph.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from orchestrator.ascend.gears import Shapes, plan_shapes
from orchestrator.ascend.mindspore_lite import Converted, MindSporeLite
from orchestrator.ascend.mindspore_lite_options import AscendOptions
from orchestrator.graph.read import inspect_onnx
from orchestrator.steps.compile_job import Built, CompileJob, Skipped

MODEL_MINDIR: Final = "model.mindir"
NO_TOOL: Final = "no MindSpore Lite on this site: `tools.mindspore_lite_python` is not set"
_NAME: Final = "mindspore-lite"


def build(job: CompileJob) -> Built | Skipped:
    """Convert to MindIR.

    Raises:
        PlanError: A size that varies is not settled.
        GateError: The converter refuses the graph.
        InfraError: It took too long.
    """
    inputs = inspect_onnx(job.graph).inputs
    shapes = plan_shapes(inputs, job.shapes)
    python = job.tools.get("mindspore_lite_python")
    if python is None:
        return Skipped(NO_TOOL, {"name": _NAME, "version": "none"}, {"shapes": shapes.to_json()}, shapes.gears)
    lite = MindSporeLite(Path(python).expanduser())
    job.tell(0.0, "MindSpore Lite: looking for CANN")
    missing, started = lite.cann_missing(), time.monotonic()
    job.tell(0.0, "MindSpore Lite: converting")
    made = lite.convert(
        job.graph,
        job.out / MODEL_MINDIR,
        optimize="general" if missing else "ascend_oriented",
        ascend=None if missing else _ascend(job, shapes),
        timeout_s=job.timeout_s,
    )
    facts = {"shapes": shapes.to_json(), **_facts(made, general=bool(missing))}
    toolchain = {"name": _NAME, "version": made.version}
    if missing:
        reason = (
            f"MindSpore Lite {made.version} cannot compile for {job.soc} here ({missing}); model.mindir is its CPU form"
        )
        return Skipped(reason, toolchain, facts, shapes.gears)
    metrics = {"compile_s": time.monotonic() - started, "size_bytes": float(made.path.stat().st_size)}
    return Built("mindir", toolchain, shapes.gears, facts, metrics)


def _ascend(job: CompileJob, shapes: Shapes) -> AscendOptions:
    if not shapes.geared:
        return AscendOptions(precision=job.precision)
    inputs = inspect_onnx(job.graph).inputs
    sizes = {i.name: [d if isinstance(d, int) else shapes.fixed.get(d, -1) for d in i.shape] for i in inputs}
    order = [d for i in inputs for d in i.shape if isinstance(d, str) and d not in shapes.fixed]
    gears = [[gear[name] for name in order] for gear in shapes.gears]
    return AscendOptions(precision=job.precision, input_format="ND", input_shape=sizes, dynamic_dims=gears)


def _facts(made: Converted, *, general: bool) -> dict[str, Any]:
    stamp = {"producer": made.stamp.producer, "version": made.stamp.version, "mind_ir": made.stamp.mind_ir}
    return {"mindir": {"file": MODEL_MINDIR, "form": "general" if general else "ascend", "built": made.built, **stamp}}
