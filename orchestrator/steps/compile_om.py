"""Target `om`: ATC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx.numpy_helper

from orchestrator.ascend.atc import Atc
from orchestrator.ascend.atc_checks import check
from orchestrator.ascend.atc_install import AtcInstall, find_atc
from orchestrator.ascend.atc_options import V2_BY_WORD, AtcOptions, make
from orchestrator.ascend.gears import Shapes, check_input_shape, plan_shapes
from orchestrator.core.errors import PlanError
from orchestrator.core.files import private_folder
from orchestrator.graph.canonical import SOURCE_KEY
from orchestrator.graph.read import inspect_onnx, load_model
from orchestrator.steps.compile_job import (
    CUSTOMIZE_DTYPES,
    KEEP_DTYPE,
    MODIFY_MIXLIST,
    Built,
    CompileJob,
    Skipped,
    without_paths,
)

NO_ATC: Final = (
    "no ATC on this site: `tools.atc` is not set and none is in ASCEND_TOOLKIT_HOME, PATH or /usr/local/Ascend"
)
_LARGEST_FP16: Final = 65504.0
_MIXED: Final = frozenset({"mixed_float16", "mixed_bfloat16"})
_UNTOUCHED: Final = frozenset({"origin", "fp32"})
_KEEPS_FP32: Final = frozenset({"origin", "must_keep_origin_dtype"})
_NAMED: Final = 10


def build(job: CompileJob) -> Built | Skipped:
    """Compile with ATC.

    Raises:
        PlanError: The options do not fit each other, the SoC or the graph; said whether ATC is here or not.
        GateError: ATC cannot compile the graph.
        InternalError: ATC crashed, hung or ran out of memory.
    """
    options, shapes, inputs = call(job)
    warnings = [*(item.text for item in check(options)), *weight_warnings(job.graph, options)]
    facts: dict[str, Any] = {"shapes": shapes.to_json(), "warnings": warnings}
    install = find_atc(job.tools.get("atc"))
    if install is None:
        facts["command"] = without_paths(options.command(Path("/atc")))
        return Skipped(NO_ATC, {"name": "atc", "version": "none"}, facts, shapes.gears)
    return _compiled(job, install, options, shapes, inputs, facts)


def call(job: CompileJob) -> tuple[AtcOptions, Shapes, tuple[str, ...]]:
    """Return the whole ATC call, its gears, and the names of the graph's inputs.

    Raises:
        PlanError: A size that varies is not settled.
        GateError: The graph is refused.
    """
    inputs = inspect_onnx(job.graph).inputs
    if "input_shape" in job.atc:  # whoever writes it has settled every size
        check_input_shape(str(job.atc["input_shape"]), inputs)
        shapes = Shapes(({},))
    else:
        shapes = plan_shapes(inputs, job.shapes, job.options.ranges, pictures=bool(job.options.aipp))
    fields: dict[str, object] = {
        **shapes.options,
        **job.options.given(),
        "model": job.graph,
        "output": job.out / "model",
        "soc_version": job.soc,
        **_precision(job),
        **job.atc,
    }
    if job.options.op_compiler_cache_mode in {"enable", "force"}:
        fields["op_compiler_cache_dir"] = private_folder(job.cache / "kernels")
    return make(fields), shapes, tuple(item.name for item in inputs)


def _precision(job: CompileJob) -> dict[str, object]:
    """Return the precision mode and the files of nodes to keep; `keep_dtype` says what `customize_dtypes` would, and
    survives a fusion that drops a node.
    """
    if job.precision not in V2_BY_WORD:
        raise PlanError(f"ATC has no precision {job.precision!r}", hint=f"use one of {', '.join(V2_BY_WORD)}")
    found: dict[str, object] = {} if "precision_mode" in job.atc else {"precision_mode_v2": V2_BY_WORD[job.precision]}
    if job.precision in _UNTOUCHED:
        return found
    keep, mixlist, customized = (job.keep_file(name) for name in (KEEP_DTYPE, MODIFY_MIXLIST, CUSTOMIZE_DTYPES))
    if keep is not None:
        found["keep_dtype"] = keep
    elif customized is not None:
        found["customize_dtypes"] = customized
    if mixlist is not None and job.precision in _MIXED:
        found["modify_mixlist"] = mixlist
    return found


def _compiled(
    job: CompileJob,
    install: AtcInstall,
    options: AtcOptions,
    shapes: Shapes,
    inputs: tuple[str, ...],
    facts: dict[str, Any],
) -> Built:
    made = Atc(install).compile(
        options,
        job.out,
        work=job.work,
        inputs=inputs,
        timeout_s=job.timeout_s,
        on_tick=lambda elapsed, line: job.tell(elapsed, f"ATC: {line}" if line else "ATC is running"),
        source_of=source_lines(job.graph),
    )
    facts |= {"command": without_paths(made.command), "host": made.host}
    facts["warnings"] = list(dict.fromkeys((*facts["warnings"], *made.warnings)))
    metrics = {
        "compile_s": made.elapsed_s,
        "attempts": float(len(made.attempts)),
        "size_bytes": float(sum(path.stat().st_size for path in made.files)),
    }
    return Built("om", {"name": "atc", "version": made.version}, shapes.gears, facts, metrics)


def source_lines(path: Path) -> Callable[[str], str]:
    """Return a function node -> `file:line` of the user's model; a node that a rewrite made has that of its origin."""
    lines: dict[str, str] = {}

    def find(node: str) -> str:
        if not lines:
            lines.update(_lines(load_model(path, weights=False).graph))
            lines.setdefault("", "")
        name = node
        while name and name not in lines:
            name = name.rpartition("/")[0]
        return lines.get(name, "")

    return find


def _lines(graph: Any) -> Iterator[tuple[str, str]]:
    todo = [graph]
    while todo:
        for node in todo.pop().node:
            note = next((entry.value for entry in node.metadata_props if entry.key == SOURCE_KEY), "")
            if note:
                yield node.name, note
            for attribute in node.attribute:
                todo.extend([attribute.g] if attribute.HasField("g") else [])
                todo.extend(attribute.graphs)


def weight_warnings(path: Path, options: AtcOptions) -> list[str]:
    """Return a line about weights that fp16 does not hold: ATC clips them, or lets them become inf, without a word."""
    if (options.precision_mode_v2 or options.precision_mode) in _KEEPS_FP32:
        return []
    names = oversized_weights(path)
    if not names:
        return []
    becomes = "become inf" if options.is_weight_clip is False else "are clipped to 65504 (is_weight_clip)"
    return [f"{len(names)} weights are beyond fp16 and {becomes}: {', '.join(names[:_NAMED])}"]


def oversized_weights(path: Path) -> list[str]:
    """Return the weights that hold a finite number beyond fp16; one tensor at a time is read."""
    found: list[str] = []
    for tensor in load_model(path, weights=False).graph.initializer:
        if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
            continue
        values = onnx.numpy_helper.to_array(tensor, str(path.parent))
        finite = np.abs(values[np.isfinite(values)])
        if finite.size and float(finite.max()) > _LARGEST_FP16:
            found.append(tensor.name)
    return found
