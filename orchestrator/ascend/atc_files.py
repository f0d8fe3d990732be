"""The files that ATC reads beside the model: AIPP, exactness of operators, fusion switches. Written from typed options."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.ascend.atc_options import AtcOptions
from orchestrator.core.errors import PlanError
from orchestrator.recipe.compile_options import Aipp, OpPrecision


def write_files(options: AtcOptions, folder: Path, *, inputs: Sequence[str]) -> AtcOptions:
    """Write what `aipp`, `op_precision` and `fusion_off` ask for, and return the options that name the files.

    Args:
        options: Already checked.
        folder: Where to write; ATC must be able to read it.
        inputs: Names of the model's inputs, in order.

    Raises:
        PlanError: AIPP names an input that the model has not, or a name cannot be written.
    """
    named: dict[str, Path] = {}
    if options.aipp:
        named["insert_op_conf"] = _write(folder / "aipp.cfg", aipp_text(options.aipp, inputs))
    if options.op_precision is not None:
        named["op_precision_mode"] = _write(folder / "op_precision.ini", op_precision_text(options.op_precision))
    if options.fusion_off:
        named["fusion_switch_file"] = _write(folder / "fusion_switch.cfg", fusion_text(options.fusion_off))
    return options.model_copy(update=named) if named else options


def aipp_text(entries: Sequence[Aipp], inputs: Sequence[str]) -> str:
    """Return ATC's AIPP file: one `aipp_op` block per input."""
    blocks: list[str] = []
    for entry in entries:
        if entry.input is not None and entry.input not in inputs:
            raise PlanError(
                f"AIPP is for input {entry.input!r}, which the model has not",
                place="aipp.input",
                hint=f"inputs: {', '.join(inputs)}",
            )
        rank = inputs.index(entry.input) if entry.input is not None else 0
        lines = "".join(f"    {key}: {value}\n" for key, value in _aipp_lines(entry, rank))
        blocks.append(f"aipp_op {{\n{lines}}}\n")
    return "".join(blocks)


def _aipp_lines(entry: Aipp, rank: int) -> Iterator[tuple[str, str]]:
    yield "aipp_mode", entry.aipp_mode
    yield "related_input_rank", str(rank)
    if entry.aipp_mode == "dynamic":
        yield "max_src_image_size", str(entry.max_src_image_size)
        return
    yield "input_format", entry.input_format
    if entry.src_image_size_w is not None:
        yield "src_image_size_w", str(entry.src_image_size_w)
        yield "src_image_size_h", str(entry.src_image_size_h)
    if entry.crop is not None:
        yield "crop", "true"
        names = ("load_start_pos_w", "load_start_pos_h", "crop_size_w", "crop_size_h")
        yield from zip(names, map(str, entry.crop), strict=True)
    if entry.padding is not None:
        yield "padding", "true"
        names = ("left_padding_size", "right_padding_size", "top_padding_size", "bottom_padding_size")
        yield from zip(names, map(str, entry.padding), strict=True)
    yield "rbuv_swap_switch", str(entry.rbuv_swap_switch).lower()
    yield "ax_swap_switch", str(entry.ax_swap_switch).lower()
    yield "csc_switch", str(entry.matrix is not None).lower()
    if entry.matrix is not None:
        yield from ((f"matrix_r{i // 3}c{i % 3}", str(value)) for i, value in enumerate(entry.matrix))
        yield from ((f"input_bias_{i}", str(value)) for i, value in enumerate(entry.input_bias or ()))
        yield from ((f"output_bias_{i}", str(value)) for i, value in enumerate(entry.output_bias or ()))
    yield from ((f"mean_chn_{i}", str(value)) for i, value in enumerate(entry.mean_chn))
    yield from ((f"min_chn_{i}", repr(value)) for i, value in enumerate(entry.min_chn))
    yield from ((f"var_reci_chn_{i}", repr(value)) for i, value in enumerate(entry.var_reci_chn))


def op_precision_text(precision: OpPrecision) -> str:
    """Return ATC's INI file of --op_precision_mode."""
    lines: list[str] = []
    for heading, rows in (("ByOpType", precision.by_type), ("ByNodeName", precision.by_node)):
        if not rows:
            continue
        lines.append(f"[{heading}]")
        for name, mode in rows.items():
            if "=" in name or name.startswith("["):
                raise PlanError(
                    f"{name[:60]!r} cannot stand in ATC's INI file",
                    place="op_precision",
                    hint="name the operator's type instead (`by_type`)",
                )
            lines.append(f"{name}={mode}")
    return "\n".join(lines) + "\n"


def fusion_text(names: Sequence[str]) -> str:
    """Return ATC's fusion switch file: single passes by lines, `ALL` as the JSON form."""
    if "ALL" in names:
        switch = {"Switch": {"GraphFusion": {"ALL": "off"}, "UBFusion": {"ALL": "off"}}}
        return json.dumps(switch, indent=2) + "\n"
    return "".join(f"{name}:off\n" for name in names)


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
