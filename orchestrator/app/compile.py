"""`compile`: one ONNX file for one SoC, outside of any recipe; what the recipe's step does, on files of the user's."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from orchestrator.app.compile_keep import check_kept, keep_files
from orchestrator.app.coverage import check_sizes
from orchestrator.ascend.atc_checks import check
from orchestrator.ascend.atc_install import find_atc
from orchestrator.ascend.atc_options import options_from_texts
from orchestrator.ascend.soc import caution
from orchestrator.ascend.toolchains import Target, toolchain
from orchestrator.core.errors import DeviceError, UsageError
from orchestrator.core.files import write_json
from orchestrator.recipe.compile_options import CompileOptions
from orchestrator.steps.compile import compiler
from orchestrator.steps.compile_job import KEEP_DTYPE, MODIFY_MIXLIST, CompileJob, Skipped
from orchestrator.steps.compile_mindir import MODEL_MINDIR
from orchestrator.steps.compile_om import call, weight_warnings

Format = Literal["om", "mindir", "onnx"]
_SUMMARY: Final = "compile.json"
_GRAPH: Final = "graph"
"""Folder of the prepared graph, in the folder of the result."""
_REPORT: Final = "check_result.json"


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """What was asked on the command line.

    Attributes:
        shapes: Size -> values; several make gears.
        input_shape: ATC's own text, in place of `shapes`.
        options: `name=value` of ATC's options.
        keep: File of nodes to keep (`.json`: changes of the mixed modes' lists), or the folder of a forecast.
        out: Folder for the result, and for the prepared graph in `graph/`.
        tools: The environment's `tools`, with what the command line overrides.
        prepare: Apply the toolchain's rewrites first.
    """

    model: Path
    format: Format
    soc: str
    precision: str
    shapes: Mapping[str, Sequence[int]]
    input_shape: str
    options: Mapping[str, str]
    keep: Path | None
    out: Path
    tools: Mapping[str, str | None]
    timeout_s: float | None
    prepare: bool = False


def dry_run(request: CompileRequest) -> dict[str, Any]:
    """Return the exact ATC command, and what should be known of it; starts nothing.

    With `prepare` the graph of the command is written, to the place where a compilation keeps it.

    Raises:
        UsageError: Only format om has one command.
        PlanError: Options exclude each other, or a size that varies is not settled.
    """
    if request.format != "om":
        raise UsageError(f"format {request.format} has no command of its own", hint="--dry-run is for --format om")
    graph, files, warnings = _checked(request)
    with tempfile.TemporaryDirectory(prefix="orchestrate-") as folder:
        options, shapes, _ = call(_job(request, Path(folder), graph, files, lambda _elapsed, _line: None))
        named = {name: value for name, value in files.items() if getattr(options, name) is not None}
        report = request.out.absolute() / _REPORT
        options = options.model_copy(update={**named, "model": graph.absolute(), "check_report": report})
        warnings += [item.text for item in check(options)] + weight_warnings(graph, options)
    install = find_atc(request.tools.get("atc"))
    command = options.command(install.program if install is not None else Path("atc"))
    found = {"path": str(install.program), "version": install.version} if install is not None else None
    written = [name for name in ("aipp", "op_precision", "fusion_off") if getattr(options, name)]
    return {
        "dry_run": True,
        "command": command,
        "graph": str(graph),
        "prepared": request.prepare,
        "atc": found,
        "warnings": warnings,
        "files_written": written,
        **shapes.to_json(),
    }


def compile_file(request: CompileRequest, tell: Callable[[float, str], None]) -> dict[str, Any]:
    """Compile, and return what `compile.json` in the output folder says.

    Raises:
        UsageError: A file is not there, or an option is unknown.
        PlanError: Options exclude each other or do not fit the SoC.
        GateError: The compiler refuses the graph.
        DeviceError: There is no such compiler here.
        InternalError: It crashed, hung or ran out of memory.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="orchestrate-") as name:
        graph, kept, warnings = _checked(request)
        job = _job(request, Path(name), graph, kept, tell)
        outcome = compiler(toolchain(Target("compile", request.format, request.soc)).key)(job)
    if isinstance(outcome, Skipped):
        raise DeviceError(
            f"nothing was compiled: {outcome.reason}",
            hint=way_out(request),
            details={"facts": dict(outcome.facts)},
        )
    files = sorted(path for path in request.out.rglob("*") if path.is_file())
    ours = (request.out / "work", request.out / _GRAPH)
    made = [path for path in files if not any(map(path.is_relative_to, ours)) and path.name != _SUMMARY]
    summary = {
        "model": str(request.model), "graph": str(graph), "prepared": request.prepare, "format": request.format, "soc": request.soc, "precision": request.precision,
        "runtime": outcome.runtime, "toolchain": dict(outcome.toolchain), "gears": [dict(gear) for gear in outcome.gears],
        "files": [{"path": str(path), "size_bytes": path.stat().st_size} for path in made],
        "facts": {**outcome.facts, "warnings": [*warnings, *outcome.facts.get("warnings", ())]}, "metrics": dict(outcome.metrics), "elapsed_s": time.monotonic() - started,
    }  # fmt: skip
    write_json(request.out / _SUMMARY, summary)
    return summary


def _checked(request: CompileRequest) -> tuple[Path, dict[str, Path], list[str]]:
    """Return the graph that the compiler gets, the files of nodes to keep, and what should be known of both."""
    if not request.model.is_file():
        raise UsageError(f"there is no file {str(request.model)!r}", hint="give the path of an ONNX file")
    check_sizes(request.model, request.shapes)
    chain = toolchain(Target("compile", request.format, request.soc))
    files = keep_files(request.keep)
    graph = _prepared(request, chain.key) if request.prepare else request.model
    if request.format == "om":
        kept = check_kept(graph, files, soc=request.soc, precision=request.precision, prepared=request.prepare)
        return graph, files, kept
    warnings = [caution(request.soc)] if caution(request.soc) else []
    if files and request.format == "mindir":
        warnings.append("--keep: MindSpore Lite takes no list of nodes to keep in fp32; use --format om")
    return graph, files, warnings


def way_out(request: CompileRequest) -> str:
    """Return what to do where a compiler is missing: the tool itself first, then the CANN that it needs."""
    cann = "install CANN on this machine and source its set_env.sh"
    if request.format == "om":
        return f"{cann}, or name the tool (--atc, or `tools.atc` in the environment); --dry-run prints ATC's command"
    tool = {"mindir": "mindspore_lite_python", "onnx": "onnxruntime_cann_python"}[request.format]
    if request.tools.get(tool) is None:
        package = {"mindir": "MindSpore Lite", "onnx": "onnxruntime-cann"}[request.format]
        return f"{cann}, and set `tools.{tool}` in the environment to a Python that has {package}"
    general = request.out / MODEL_MINDIR
    return f"{cann}; the CPU form is {general}" if general.is_file() and request.format == "mindir" else cann


def _job(
    request: CompileRequest, folder: Path, graph: Path, files: Mapping[str, Path], tell: Callable[[float, str], None]
) -> CompileJob:
    fields = options_from_texts(dict(request.options))
    if request.input_shape:
        fields["input_shape"] = request.input_shape
    if fields and request.format != "om":
        raise UsageError(f"{', '.join(fields)} are options of ATC", hint="leave them out, or use --format om")
    forecast = folder / "forecast"
    forecast.mkdir()
    for name, path in files.items():
        shutil.copyfile(path, forecast / (MODIFY_MIXLIST if name == "modify_mixlist" else KEEP_DTYPE))
    options = CompileOptions.model_validate({"timeout": request.timeout_s} if request.timeout_s is not None else {})
    return CompileJob(
        target="compile", soc=request.soc, precision=request.precision, shapes=request.shapes, options=options,
        graph=graph.absolute(), forecast=forecast, out=request.out.absolute(), work=(request.out / "work").absolute(),
        cache=(request.out / "work" / "cache").absolute(), tools=request.tools, tell=tell, atc=fields,
    )  # fmt: skip


def _prepared(request: CompileRequest, chain: str) -> Path:
    """Write the rewritten graph where it stays: the command names it, and it is what the compiled model is made of."""
    from orchestrator.graph.prepare import prepare

    made = prepare(
        request.model, request.out / _GRAPH, toolchain=chain, soc=request.soc, precision=request.precision,
        shapes=request.shapes,
    )  # fmt: skip
    return made.path
