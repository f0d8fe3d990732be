"""`orchestrate forecast`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, cast

import typer

from orchestrator.cli.options import Json, new_app

if TYPE_CHECKING:
    from orchestrator.graph.forecast.result import Forecast

app = new_app()

_SHOWN: Final = 12


@app.command(
    epilog="Examples:  orchestrate forecast model.onnx --soc Ascend310P3 --samples real.npz --html forecast.html   |   "
    "orchestrate forecast model.onnx --soc Ascend910B4 --precision mixed_float16 --samples data:samples "
    "--evaluate data:evaluate --out forecast/   |   orchestrate forecast model.onnx --soc Ascend310P3 --keep none --json"
)
def forecast(  # noqa: PLR0913, PLR0917  one parameter per option
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file in fp32.")],
    soc: Annotated[str | None, typer.Option(help="SoC as ATC spells it, e.g. Ascend310P3.")] = None,
    precision: Annotated[
        str, typer.Option(help="fp16, mixed_float16, cube_fp16in_fp32out, mixed_bfloat16, origin or fp32.")
    ] = "fp16",
    samples: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.npz|MODULE:CALLABLE",
            help="Real inputs by name, axis 0 = sample; else synthetic. MODULE is looked for in the current folder, then among what is installed; CALLABLE(count) yields {input: array}. Floats of another width are converted.",
        ),
    ] = None,
    samples_count: Annotated[int, typer.Option(min=1, help="How many samples to ask a callable for.")] = 64,
    evaluate: Annotated[
        str | None,
        typer.Option(metavar="MODULE:CALLABLE", help="evaluate(predict) -> {metric: float}; found as in --samples."),
    ] = None,
    keep: Annotated[
        str, typer.Option(metavar="auto|none|NODE,NODE…", help="What stays in fp32; auto finds the list.")
    ] = "auto",
    min_sqnr_db: Annotated[
        float | None, typer.Option(help="Least SQNR of the worst sample, in dB; less is a no.")
    ] = None,
    min_cosine: Annotated[float | None, typer.Option(help="Least cosine of the worst sample, -1 to 1.")] = None,
    accumulate: Annotated[str, typer.Option(help="Format of sums inside vector reductions: fp32 or fp16.")] = "fp32",
    prepare: Annotated[
        bool, typer.Option("--prepare/--no-prepare", help="Apply the toolchain's rewrites first, as a run does.")
    ] = False,
    toolchain: Annotated[str, typer.Option(help="With --prepare: atc, mindspore-lite or cann-ep.")] = "atc",
    out: Annotated[Path | None, typer.Option(help="Folder for the report, the page and the lists for ATC.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page here.")] = None,
    as_json: Json = False,
) -> None:
    """Say what fp16 will make of a model, before any NPU exists, and which nodes to keep in fp32.

    ok: what is asked is met, with the keep list. no: a limit that you set is missed, or by far the default one, or a node
    overflows that this SoC cannot compute in fp32. warn: the default is nearly met (fp16: 30 dB and cosine 0.997 at
    least), or the samples are synthetic. Exits 1 on no. Uncalibrated: no device has confirmed it.
    """
    from orchestrator.app.forecast import ForecastRequest, foresee
    from orchestrator.cli.output import print_json
    from orchestrator.core.errors import UsageError

    if accumulate not in {"fp32", "fp16"}:
        raise UsageError(f"--accumulate {accumulate!r} is neither fp32 nor fp16", hint="fp32 is what matrix units do")
    names = keep if keep in {"auto", "none"} else [name for name in keep.split(",") if name]
    request = ForecastRequest(
        model, soc, precision, samples=samples, count=samples_count, evaluate=evaluate, keep=names, toolchain=toolchain,
        prepare=prepare, accumulate=cast("Literal['fp32', 'fp16']", accumulate), min_sqnr_db=min_sqnr_db,
        min_cosine=min_cosine, out=out, html=html,
    )  # fmt: skip
    found = foresee(request, _progress())
    if as_json:
        print_json(found.to_json())
    else:
        _show(found, out, html)
    if found.verdict == "no":
        raise typer.Exit(1)


class _progress:  # noqa: N801  called like the function it stands for
    """Prints each phase once, on stderr, where a person watches."""

    def __init__(self) -> None:
        self._began, self._last = time.monotonic(), ""
        self._shown = sys.stderr.isatty()

    def __call__(self, done: float, text: str) -> None:
        if self._shown and text and text != self._last:
            print(f"{time.monotonic() - self._began:6.1f} s  {done:4.0%}  {text}", file=sys.stderr)
            self._last = text


def _show(found: Forecast, out: Path | None, html: Path | None) -> None:
    from orchestrator.cli.output import print_table

    soc = found.policy.soc or "no SoC in particular"
    kind = "SYNTHETIC" if found.synthetic else "real"
    print(
        f"{found.model} on {soc}, {found.policy.name}: {found.verdict} ({found.status}; {found.samples} {kind} samples)"
    )
    for reason in found.reasons:
        print(f"  {reason}")
    rows = [
        (name, f"{numbers.sqnr_db:.1f} dB", f"{numbers.cosine:.6f}", "" if numbers.top1 is None else f"{numbers.top1:.2%}",
         numbers.cost.nodes, f"{numbers.cost.flops_share:.2%}", numbers.cost.casts)
        for name, numbers in (("nothing kept", found.before), ("with the list", found.after))
    ]  # fmt: skip
    print_table(("", "SQNR", "cosine", "top-1", "nodes kept", "operations", "casts"), rows)
    for name, value in found.after.task.items():
        print(
            f"{name}: fp32 {found.reference_task[name]:g}, as it is {found.before.task[name]:g}, with the list {value:g}"
        )
    _show_trouble(found)
    kept = [*found.keep.must, *found.keep.should]
    for one in kept[:_SHOWN]:
        print(f"keep ({one.level}) {one.node} ({one.op_type}): {one.reasons[0] if one.reasons else ''}")
    if len(kept) > _SHOWN:
        print(f"and {len(kept) - _SHOWN} more (--out, --json)")
    for one in found.keep.proposals:
        print(f"{one.status}: {', '.join(one.tensors)}: {one.text}")
    for note in found.notes:
        print(f"note: {note}")
    for path in (out, html):
        if path is not None:
            print(f"written: {path}")


def _show_trouble(found: Forecast) -> None:
    if found.overflow:
        print(
            f"overflow: {len(found.overflow)} tensors (strict), {len(found.fused_overflow)} outside what compilers fuse"
        )
    for name, users in found.underflow.items():
        print(f"flushed zeros: {name} reaches {', '.join(users)}")
    for one in found.reductions:
        how = "overflows" if one.narrow else "would overflow if the kernel accumulated in fp16"
        print(f"reduction: {one.node} sums {one.largest_sum:.6g} over {one.terms} terms: {how}")
    for kind, name in (("local", found.first_bad_local), ("cumulative", found.first_bad_cumulative)):
        if name:
            print(f"first bad tensor, {kind}: {name}")
    for name, minimum in found.minimum.items():
        text = "none would" if minimum is None else ", ".join(f"{key} {value:g}" for key, value in minimum.items())
        print(f"minimum that would pass, {name}: {text}")
