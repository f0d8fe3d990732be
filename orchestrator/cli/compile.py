"""`orchestrate compile`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from orchestrator.cli.options import Environment, Json, new_app

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.app.compile import Format

app = new_app()

_EVERY_S: Final = 10.0


@app.command(
    "compile",
    epilog="Examples:  orchestrate compile model.onnx --soc Ascend310P3 --shape batch=1,4,16   |   "
    "orchestrate compile model.onnx --soc Ascend910B4 --precision mixed_float16 --keep forecast/ --dry-run   |   "
    "orchestrate compile model.onnx --soc Ascend310P3 --shape batch=1 --option host_env_os=linux "
    "--option host_env_cpu=aarch64",
)
def compile_(  # noqa: PLR0913, PLR0917  one parameter per option
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")],
    soc: Annotated[str, typer.Option(help="SoC as ATC spells it, e.g. Ascend310P3.")],
    format_: Annotated[
        str, typer.Option("--format", help="om (ATC), mindir (MindSpore Lite) or onnx (CANN provider).")
    ] = "om",
    precision: Annotated[
        str, typer.Option(help="fp16, mixed_float16, cube_fp16in_fp32out, mixed_bfloat16, origin or fp32.")
    ] = "fp16",
    shape: Annotated[
        list[str],
        typer.Option(
            "--shape", "--shapes", metavar="NAME=SIZES", help="Sizes of a dimension; several make gears; repeatable."
        ),
    ] = [],  # noqa: B006  typer copies the default
    input_shape: Annotated[
        str, typer.Option(metavar="TEXT", help="ATC's own text, e.g. 'x:1,3,224,224', in place of --shape.")
    ] = "",
    option: Annotated[
        list[str], typer.Option("--option", metavar="NAME=VALUE", help="An option of ATC; repeatable.")
    ] = [],  # noqa: B006
    keep: Annotated[
        Path | None,
        typer.Option(help="Nodes to keep in fp32: a keep_dtype file, a mixlist .json, or a forecast's folder."),
    ] = None,
    atc: Annotated[Path | None, typer.Option(help="The ATC to use.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the result; MODEL.SOC.FORMAT/ when not given.")] = None,
    timeout: Annotated[str, typer.Option(help="Limit of one attempt, e.g. 45m.")] = "30m",
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare/--no-prepare", help="Apply the toolchain's rewrites first; their graph stays in OUT/graph."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print ATC's exact command and start nothing; a run has its output and report in OUT/work until proved.",
        ),
    ] = False,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Compile an ONNX file for a SoC: private folder, time limit, success only when proved, errors explained."""
    from orchestrator.app.compile import CompileRequest, compile_file
    from orchestrator.app.compile import dry_run as show_command
    from orchestrator.app.coverage import sizes
    from orchestrator.cli.output import print_json
    from orchestrator.environment import load_environment

    tools: dict[str, str | None] = load_environment(environment).tools.model_dump(mode="json")
    request = CompileRequest(
        model=model,
        format=_format(format_),
        soc=soc,
        precision=precision,
        shapes=sizes(shape),
        input_shape=input_shape,
        options=_pairs(option),
        keep=keep,
        out=out or Path(f"{model.stem}.{soc}.{format_}"),
        tools={**tools, "atc": str(atc) if atc is not None else tools.get("atc")},
        timeout_s=_seconds(timeout),
        prepare=prepare,
    )
    if dry_run:
        shown = show_command(request)
        print_json(shown) if as_json else _show_command(shown)
        return
    made = compile_file(request, (lambda _elapsed, _line: None) if as_json else _teller())
    print_json(made) if as_json else _show(made)


def _format(text: str) -> Format:
    from orchestrator.core.errors import UsageError

    if text not in {"om", "mindir", "onnx"}:
        raise UsageError(f"there is no format {text!r} to compile an ONNX file to", hint="use om, mindir or onnx")
    return cast("Format", text)


def _seconds(text: str) -> float:
    from orchestrator.core.errors import UsageError
    from orchestrator.core.units import parse_duration_s

    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise UsageError(str(error), place="--timeout") from error


def _pairs(texts: list[str]) -> dict[str, str]:
    from orchestrator.core.errors import UsageError

    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.removeprefix("--").partition("=")
        if not equals or name in found:
            raise UsageError(f"--option {text!r}: write each NAME=VALUE once", hint="e.g. --option oo_level=O1")
        found[name] = value
    return found


def _teller() -> Callable[[float, str], None]:
    """Return a function that says a line on stderr now and then."""
    last = -_EVERY_S

    def tell(elapsed: float, line: str) -> None:
        nonlocal last
        if elapsed - last >= _EVERY_S:
            last = elapsed
            print(f"{elapsed:.0f} s  {line}", file=sys.stderr)

    return tell


def _show_command(shown: dict[str, Any]) -> None:
    import shlex

    print(shlex.join(shown["command"]))
    if shown["prepared"]:
        print(f"prepared graph: {shown['graph']}", file=sys.stderr)
    if shown["atc"] is None:
        print("note: there is no ATC here", file=sys.stderr)
    for warning in shown["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)


def _show(made: dict[str, Any]) -> None:
    from orchestrator.core.units import format_bytes, format_duration

    tool = made["toolchain"]
    print(
        f"{made['format']} for {made['soc']} by {tool['name']} {tool['version']} in {format_duration(made['elapsed_s'])}"
    )
    for file in made["files"]:
        print(f"{file['path']}  {format_bytes(file['size_bytes'])}")
    if made["prepared"]:
        print(f"prepared graph: {made['graph']}")
    host = made["facts"].get("host")
    if host:
        print(f"it loads on {host} only")
    for warning in made["facts"].get("warnings", ()):
        print(f"warning: {warning}")
