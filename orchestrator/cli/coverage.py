"""`orchestrate coverage`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from orchestrator.cli.options import Json, new_app

if TYPE_CHECKING:
    from orchestrator.app.coverage import CoverageAnswer
    from orchestrator.graph.coverage import NodeVerdict

app = new_app()

_SHOWN: Final = 6


@app.command(
    epilog="Examples:  orchestrate coverage model.onnx --soc Ascend310P3   |   "
    "orchestrate coverage model.onnx --soc Ascend910B4 --toolchain cann-ep --prepare   |   "
    "orchestrate coverage model.onnx --toolchain mindspore-lite --json"
)
def coverage(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")],
    soc: Annotated[str | None, typer.Option(help="SoC as ATC spells it, e.g. Ascend310P3.")] = None,
    toolchain: Annotated[str, typer.Option(help="atc, mindspore-lite (alone works without --soc) or cann-ep.")] = "atc",
    precision: Annotated[
        str, typer.Option(help="fp16, mixed_float16, cube_fp16in_fp32out, mixed_bfloat16, origin or fp32.")
    ] = "fp16",
    prepare: Annotated[
        bool,
        typer.Option("--prepare/--no-prepare", help="Apply the toolchain's rewrites first, and cover what they leave."),
    ] = False,
    shape: Annotated[
        list[str],
        typer.Option("--shape", metavar="NAME=SIZES", help="With --prepare: fix a named dimension; repeatable."),
    ] = [],  # noqa: B006  typer copies the default
    rewrite: Annotated[
        list[str],
        typer.Option("--rewrite", metavar="NAME=on|off", help="With --prepare: switch a rewrite; repeatable."),
    ] = [],  # noqa: B006
    cann: Annotated[
        Path | None,
        typer.Option(help="Home of a CANN whose tables answer; otherwise one found here, else those shipped."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether every node of a graph will run on a SoC, and what to do about those that will not.

    ok: the toolchain reads it and has a kernel. slow: it runs on the AI CPU. unknown: no table says. blocked: it does not
    convert. Exits 1 when anything is blocked.
    """
    from orchestrator.app.coverage import CoverageRequest, examine, sizes, switches
    from orchestrator.cli.output import print_json

    answer = examine(CoverageRequest(model, soc, toolchain, precision, prepare, sizes(shape), switches(rewrite), cann))
    if as_json:
        print_json(answer.to_json())
    else:
        _show(answer)
    if answer.coverage.verdict == "blocked":
        raise typer.Exit(1)


def _show(answer: CoverageAnswer) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = answer.coverage
    console = Console(highlight=False)
    console.print(
        Text(
            f"{answer.model.name} on {found.soc or 'any device'} by {found.toolchain}, {found.precision}: {found.verdict}"
        )
    )
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found.counts.items() if count)
    console.print(Text(f"opset {found.opset}, {len(found.nodes)} nodes: {counts}"))
    console.print(Text(f"tables: {found.tables}"))
    if answer.prepared is not None:
        done = ", ".join(item.rewrite for item in answer.prepared.applied) or "none was needed"
        console.print(Text(f"rewrites: {done}"))
    if answer.after:
        console.print(Text(answer.after))
    groups = _groups(found.offending())
    if groups:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("verdict", no_wrap=True)
        table.add_column("nodes", overflow="fold", max_width=34)
        table.add_column("why, and what to do", overflow="fold")
        for nodes in groups:
            table.add_row(nodes[0].verdict, Text(_names(nodes)), Text(_why(nodes[0])))
        console.print()
        console.print(table)
    for note in (*found.notes, *(answer.prepared.notes if answer.prepared is not None else ())):
        console.print(Text(f"note: {note}"))


def _groups(nodes: tuple[NodeVerdict, ...]) -> list[list[NodeVerdict]]:
    """Put nodes of the same verdict, reasons and fix together, the worst first: one cause is said once."""
    groups: dict[tuple[object, ...], list[NodeVerdict]] = {}
    for node in nodes:
        groups.setdefault((node.verdict, node.reasons, node.fix), []).append(node)
    return list(groups.values())


def _names(nodes: list[NodeVerdict]) -> str:
    kinds = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in nodes)
    heads = [f"{kind} x{count}" if count > 1 else kind for kind, count in kinds.items()]
    if len(kinds) > 1:
        return "\n".join((f"{len(nodes)} nodes", *(f"  {head}" for head in heads)))
    lines = heads
    for node in nodes[:_SHOWN]:
        where = f" {node.source}" if node.source else ""
        lines.append(f"  {node.path + '/' if node.path else ''}{node.node}{where}")
    if len(nodes) > _SHOWN:
        lines.append(f"  and {len(nodes) - _SHOWN} more (--json)")
    return "\n".join(lines)


def _why(node: NodeVerdict) -> str:
    return "\n".join((*node.reasons, *((f"fix: {node.fix}",) if node.fix else ())))
