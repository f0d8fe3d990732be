"""`compile`: one ONNX file for one SoC, outside of any recipe; what the recipe's step does, on files of the user's."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from orchestrator.app.coverage import check_sizes
from orchestrator.ascend.atc_checks import check
from orchestrator.ascend.atc_install import find_atc
from orchestrator.ascend.atc_options import options_from_texts
from orchestrator.ascend.toolchains import Target, toolchain
from orchestrator.core.errors import DeviceError, UsageError
from orchestrator.core.files import write_json
from orchestrator.recipe.compile_options import CompileOptions
from orchestrator.steps.compile import compiler
from orchestrator.steps.compile_job import KEEP_DTYPE, MODIFY_MIXLIST, CompileJob, Skipped
from orchestrator.steps.compile_om import call, weight_warnings

Format = Literal["om", "mindir", "onnx"]
_SUMMARY: Final = "compile.json"


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """What was asked on the command line.

    Attributes:
        shapes: Size -> values; several make gears.
        input_shape: ATC's own text, in place of `shapes`.
        options: `name=value` of ATC's options.
        keep: File of nodes to keep (`.json`: changes of the mixed modes' lists), or the folder of a forecast.
        out: Folder for the result.
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
    """Return the exact ATC command, and what should be known of it; starts nothing, keeps no file.

    Raises:
        UsageError: Only format om has one command.
        PlanError: Options exclude each other, or a size that varies is not settled.
    """
    if request.format != "om":
        raise UsageError(f"format {request.format} has no command of its own", hint="--dry-run is for --format om")
    with tempfile.TemporaryDirectory(prefix="orchestrate-") as folder:
        options, shapes, _ = call(_job(request, Path(folder), request.model, lambda _elapsed, _line: None))
        named = {name: value for name, value in _kept(request).items() if getattr(options, name) is not None}
        options = options.model_copy(update={**named, "model": request.model.absolute()})
        warnings = [item.text for item in check(options)] + weight_warnings(request.model, options)
    install = find_atc(request.tools.get("atc"))
    command = options.command(install.program if install is not None else Path("atc"))
    found = {"path": str(install.program), "version": install.version} if install is not None else None
    written = [name for name in ("aipp", "op_precision", "fusion_off") if getattr(options, name)]
    return {
        "dry_run": True,
        "command": command,
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
        folder = Path(name)
        graph = _prepared(request, folder) if request.prepare else request.model
        job = _job(request, folder, graph, tell)
        outcome = compiler(toolchain(Target("compile", request.format, request.soc)).key)(job)
    if isinstance(outcome, Skipped):
        raise DeviceError(
            f"nothing was compiled: {outcome.reason}",
            hint="name the tool (--atc, or `tools` in the environment); --dry-run prints ATC's command",
            details={"facts": dict(outcome.facts)},
        )
    files = sorted(path for path in request.out.rglob("*") if path.is_file())
    kept = [path for path in files if not path.is_relative_to(request.out / "work") and path.name != _SUMMARY]
    summary = {
        "model": str(request.model), "format": request.format, "soc": request.soc, "precision": request.precision,
        "runtime": outcome.runtime, "toolchain": dict(outcome.toolchain), "gears": [dict(gear) for gear in outcome.gears],
        "files": [{"path": str(path), "size_bytes": path.stat().st_size} for path in kept],
        "facts": dict(outcome.facts), "metrics": dict(outcome.metrics), "elapsed_s": time.monotonic() - started,
    }  # fmt: skip
    write_json(request.out / _SUMMARY, summary)
    return summary


def _job(request: CompileRequest, folder: Path, graph: Path, tell: Callable[[float, str], None]) -> CompileJob:
    if not graph.is_file():
        raise UsageError(f"there is no file {str(graph)!r}", hint="give the path of an ONNX file")
    check_sizes(request.model, request.shapes)
    fields = options_from_texts(dict(request.options))
    if request.input_shape:
        fields["input_shape"] = request.input_shape
    if fields and request.format != "om":
        raise UsageError(f"{', '.join(fields)} are options of ATC", hint="leave them out, or use --format om")
    forecast = folder / "forecast"
    forecast.mkdir()
    for name, path in _kept(request).items():
        shutil.copyfile(path, forecast / (MODIFY_MIXLIST if name == "modify_mixlist" else KEEP_DTYPE))
    options = CompileOptions.model_validate({"timeout": request.timeout_s} if request.timeout_s is not None else {})
    return CompileJob(
        target="compile", soc=request.soc, precision=request.precision, shapes=request.shapes, options=options,
        graph=graph.absolute(), forecast=forecast, out=request.out.absolute(), work=(request.out / "work").absolute(),
        cache=(request.out / "work" / "cache").absolute(), tools=request.tools, tell=tell, atc=fields,
    )  # fmt: skip


def _kept(request: CompileRequest) -> dict[str, Path]:
    if request.keep is None:
        return {}
    path = request.keep.expanduser().absolute()
    if path.is_dir():
        pairs = (("keep_dtype", KEEP_DTYPE), ("modify_mixlist", MODIFY_MIXLIST))
        return {name: path / file for name, file in pairs if (path / file).is_file()}
    if not path.is_file():
        raise UsageError(f"there is no file {str(request.keep)!r}", place="--keep", hint="give a keep_dtype file")
    return {"modify_mixlist" if path.suffix == ".json" else "keep_dtype": path}


def _prepared(request: CompileRequest, folder: Path) -> Path:
    from orchestrator.graph.prepare import prepare

    chain = toolchain(Target("compile", request.format, request.soc))
    made = prepare(
        request.model, folder / "prepared", toolchain=chain.key, soc=request.soc, precision=request.precision,
        shapes=request.shapes,
    )  # fmt: skip
    return made.path
