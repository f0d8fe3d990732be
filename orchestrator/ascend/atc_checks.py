"""Which options of ATC exclude each other, and which SoC knows which: said before ATC starts, with the way out.

ATC itself finds most of these, minutes later and as a number. Rules and codes: github:hicann/ge @ffdcbc9f, ATC user guide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

from orchestrator.ascend.atc_options import AtcOptions
from orchestrator.ascend.soc import caution, soc
from orchestrator.core.errors import PlanError
from orchestrator.recipe.compile_options import CompileOptions

BF16_FAMILIES: Final = frozenset({"Ascend910B", "Ascend910_93", "Ascend310B", "Ascend950"})
HF32_FAMILIES: Final = frozenset({"Ascend910B", "Ascend910_93", "Ascend950"})
HIF8_FAMILIES: Final = frozenset({"Ascend950"})
STATUS_CHECK_FAMILIES: Final = frozenset({"Ascend310B", "Ascend310P", "Ascend910"})
NO_RANGES: Final = frozenset({"Ascend310B"})
FEWEST_GEARS: Final = 2
_MOST_GEARS: Final = 100
_MOST_GEARS_950: Final = 256
_ADVISED_BATCH: Final = 2048
_NEW_TYPES: Final = frozenset({"HIF8", "FP8E5M2", "FP8E4M3FN"})
_MIXED: Final = frozenset(
    {"mixed_float16", "mixed_bfloat16", "mixed_hif8"}
    | {"allow_mix_precision", "allow_mix_precision_fp16", "allow_mix_precision_bf16"}
)
_KEEPS_ALL: Final = frozenset({"origin", "must_keep_origin_dtype"})
_BF16: Final = frozenset({"mixed_bfloat16", "allow_mix_precision_bf16", "allow_fp32_to_bf16"})
_HIF8: Final = frozenset({"mixed_hif8", "cube_hif8"})


@dataclass(frozen=True, slots=True)
class Complaint:
    """One thing that cannot be (`error`) or should be known (`warning`): which option, its value, what, and the way out."""

    option: str
    value: str
    text: str
    fix: str
    error: bool = True

    def to_json(self) -> dict[str, object]:
        """Return it as an object."""
        return asdict(self)


def most_gears(soc_version: str) -> int:
    """Return how many gears a model may have on this SoC."""
    return _MOST_GEARS_950 if soc(soc_version).family == "Ascend950" else _MOST_GEARS


def check(options: AtcOptions) -> tuple[Complaint, ...]:
    """Check a whole call and return what should be known.

    Raises:
        PlanError: Options that exclude each other or do not exist on this SoC; `details.problems` has all of them.
    """
    found = [*_shapes(options), *_precision(options), *_inputs(options), *_by_soc(options, options.soc_version)]
    refuse(found, prefix="--")
    if caution(options.soc_version):
        found.append(Complaint("soc_version", options.soc_version, caution(options.soc_version), "", error=False))
    return tuple(item for item in found if not item.error)


def check_for_target(
    options: CompileOptions, *, soc_version: str | None, format_: str, target: str, precision: str = "fp16"
) -> None:
    """Check what can be known at plan time: a recipe's precision and options against its target's format and SoC.

    Raises:
        PlanError: The SoC is unknown, or something does not fit it; `place` is its path in the recipe.
    """
    family = _family(soc_version, target)
    if precision in _BF16 and family is not None and family not in BF16_FAMILIES:
        raise PlanError(
            f"{soc_version} has no bfloat16 ({precision})",
            place=f"targets.{target}.precision",
            hint="use fp16, mixed_float16 or cube_fp16in_fp32out",
        )
    found = list(_by_format(options, format_, soc_version))
    if soc_version is not None and format_ == "om":
        found += [*_by_soc(options, soc_version), *_inputs(options)]
    refuse(found, prefix=f"targets.{target}.compile.")


def _family(soc_version: str | None, target: str) -> str | None:
    if soc_version is None:
        return None
    try:
        return soc(soc_version).family
    except PlanError as error:
        raise PlanError(error.message, place=f"targets.{target}.soc", hint=error.hint) from error


def refuse(found: list[Complaint], *, prefix: str) -> None:
    """Raise one PlanError for all errors of the list, if there is one."""
    errors = [item for item in found if item.error]
    if not errors:
        return
    first, more = errors[0], len(errors) - 1
    raise PlanError(
        first.text + (f" (and {more} more)" if more else ""),
        place=f"{prefix}{first.option}",
        hint=first.fix,
        details={"problems": [item.to_json() for item in errors]},
    )


def _shapes(options: AtcOptions) -> Iterator[Complaint]:
    ways = [
        name
        for name in ("dynamic_batch_size", "dynamic_image_size", "dynamic_dims", "input_shape_range")
        if getattr(options, name)
    ]
    if "~" in options.input_shape:
        ways.append("input_shape (a range)")
    if len(ways) > 1:
        fix = "keep one: gears in `shapes`, or `ranges`"
        yield Complaint(ways[1].split(" ")[0], "", f"{' and '.join(ways)} exclude each other", fix)
    yield from _gears(options)
    if options.dynamic_dims and options.input_format not in (None, "ND"):
        text = f"dynamic_dims needs input_format ND, not {options.input_format}"
        yield Complaint("input_format", str(options.input_format), text, "set input_format to ND or leave it out")
    if options.dynamic_image_size and options.input_format not in (None, "NCHW"):
        text = f"dynamic_image_size needs input_format NCHW, not {options.input_format}"
        yield Complaint("input_format", str(options.input_format), text, "set input_format to NCHW or leave it out")
    if options.dynamic_dims and (options.insert_op_conf is not None or options.aipp):
        text = "dynamic_dims and AIPP (insert_op_conf) exclude each other"
        yield Complaint("insert_op_conf", "", text, "take AIPP off, or gear only the batch or height and width")
    if "-1" in options.input_shape and not ways and soc(options.soc_version).family in NO_RANGES:
        text = f"{options.soc_version} has no shapes without gears: {options.input_shape}"
        yield Complaint("input_shape", options.input_shape, text, "give gears (`shapes`)")
    if options.input_shape_range:
        yield Complaint("input_shape_range", "", "input_shape_range is deprecated", "write 1~10 in input_shape", False)


def _gears(options: AtcOptions) -> Iterator[Complaint]:
    most = most_gears(options.soc_version)
    for name in ("dynamic_batch_size", "dynamic_image_size", "dynamic_dims"):
        gears: tuple[object, ...] = getattr(options, name)
        if not gears:
            continue
        if not FEWEST_GEARS <= len(gears) <= most:
            fix = f"{FEWEST_GEARS} to {most} gears on {options.soc_version}; one size alone is a fixed shape"
            yield Complaint(name, str(len(gears)), f"{name} has {len(gears)} gears", fix)
        if len(set(gears)) != len(gears):
            yield Complaint(name, str(gears), f"{name} has a gear twice", "name each gear once")
        if "-1" not in options.input_shape:
            text = f"{name} is given but input_shape {options.input_shape!r} has no -1"
            yield Complaint("input_shape", options.input_shape, text, "write -1 where the size varies")
    if options.dynamic_batch_size and max(options.dynamic_batch_size) > _ADVISED_BATCH:
        text = f"batch {max(options.dynamic_batch_size)} is more than the vendor advises ({_ADVISED_BATCH})"
        yield Complaint("dynamic_batch_size", "", text, "use smaller gears", False)
    widths = {len(gear) for gear in options.dynamic_dims}
    if options.dynamic_dims and widths != {options.input_shape.count("-1")}:
        count = options.input_shape.count("-1")
        text = f"gears of dynamic_dims have {sorted(widths)} values, input_shape has {count} times -1"
        yield Complaint("dynamic_dims", "", text, "give one value for every -1")


def _precision(options: AtcOptions) -> Iterator[Complaint]:
    mode = options.precision_mode_v2 or options.precision_mode or "fp16"
    family = soc(options.soc_version).family
    if options.precision_mode is not None and options.precision_mode_v2 is not None:
        text = f"precision_mode {options.precision_mode} and precision_mode_v2 {options.precision_mode_v2} exclude each other"
        yield Complaint("precision_mode", options.precision_mode, text, "give precision_mode_v2 alone")
    if options.modify_mixlist is not None and mode not in _MIXED:
        text = f"modify_mixlist works only in mixed modes, not {mode}"
        yield Complaint("modify_mixlist", str(options.modify_mixlist), text, "use mixed_float16, or keep_dtype")
    if options.keep_dtype is not None and mode in _KEEPS_ALL:
        text = f"keep_dtype has no effect with {mode}"
        yield Complaint("keep_dtype", str(options.keep_dtype), text, f"leave it out: {mode} keeps every type")
    if mode in _BF16 and family not in BF16_FAMILIES:
        text = f"{options.soc_version} has no bfloat16 ({mode})"
        yield Complaint("precision_mode_v2", mode, text, "use mixed_float16 or fp16")
    if mode in _HIF8 and family not in HIF8_FAMILIES:
        yield Complaint("precision_mode_v2", mode, f"{options.soc_version} has no HiF8 ({mode})", "only the 950 has it")


def _inputs(options: CompileOptions) -> Iterator[Complaint]:
    has_file = isinstance(options, AtcOptions) and options.insert_op_conf is not None
    if options.aipp and has_file:
        yield Complaint("aipp", "", "aipp and insert_op_conf exclude each other", "give one of them")
    pictures = {entry.input for entry in options.aipp if entry.input is not None}
    both = sorted(pictures & set(options.input_fp16_nodes))
    if both or (options.input_fp16_nodes and (has_file or any(entry.input is None for entry in options.aipp))):
        text = f"an input with AIPP is UINT8, it cannot be in input_fp16_nodes {list(options.input_fp16_nodes)}"
        yield Complaint(
            "input_fp16_nodes", str(both), text, "name the input of each `aipp` entry, and take it off the list"
        )
    if len(options.aipp) > 1 and len(pictures) != len(options.aipp):
        yield Complaint("aipp", "", "several AIPP entries must each name another input", "set `input` in each")
    styles = {":" in node for node in options.out_nodes}
    if len(styles) > 1:
        text = f"out_nodes mixes `node:0` and output names: {list(options.out_nodes)}"
        yield Complaint("out_nodes", str(list(options.out_nodes)), text, "use one style for all")
    strangers = sorted(set(options.output_types) - set(options.out_nodes))
    if strangers:
        text = f"output_types names {strangers}, which out_nodes does not"
        yield Complaint("output_types", str(strangers), text, "add them to out_nodes")
    if options.op_select_implmode is not None:
        text = "op_select_implmode is deprecated"
        yield Complaint("op_select_implmode", options.op_select_implmode, text, "use op_precision", False)
    if options.op_precision is not None and isinstance(options, AtcOptions) and options.op_precision_mode is not None:
        yield Complaint("op_precision", "", "op_precision and op_precision_mode exclude each other", "give one of them")


def _by_soc(options: CompileOptions, soc_version: str) -> Iterator[Complaint]:
    family = soc(soc_version).family
    if options.status_check and family not in STATUS_CHECK_FAMILIES:
        text = f"status_check does not exist on {soc_version}"
        yield Complaint("status_check", "1", text, "that SoC computes inf and NaN; look at the outputs instead")
    if options.allow_hf32 and family not in HF32_FAMILIES:
        yield Complaint("allow_hf32", "true", f"{soc_version} has no HF32", "leave allow_hf32 out")
    ranged = bool(options.ranges) or (isinstance(options, AtcOptions) and "~" in options.input_shape)
    if ranged and family in NO_RANGES:
        yield Complaint(
            "ranges", str(dict(options.ranges)), f"{soc_version} has no ranges of sizes", "give gears (`shapes`)"
        )
    types = {kind for kind in (options.output_type, *options.output_types.values()) if kind is not None}
    if types & _NEW_TYPES and family not in HIF8_FAMILIES:
        text = f"{soc_version} has no output of type {sorted(types & _NEW_TYPES)}"
        yield Complaint("output_type", str(sorted(types)), text, "only the 950 has it; use FP16 or FP32")
    if isinstance(options, AtcOptions) and options.compression_optimize_conf is not None:
        text = "compression_optimize_conf runs the model on an NPU while it compiles, and needs the AMCT package"
        yield Complaint("compression_optimize_conf", "", text, "quantise before export where there is no NPU", False)


_EVERYWHERE: Final = frozenset({"timeout", "op_select_implmode", "optypelist_for_implmode"})


def _by_format(options: CompileOptions, format_: str, soc_version: str | None) -> Iterator[Complaint]:
    if format_ == "om":
        if options.cann_provider is not None:
            yield Complaint("cann_provider", "", "cann_provider is for format onnx with a SoC", "leave it out")
        return
    allowed = {"timeout"}
    if format_ == "onnx" and soc_version is not None:
        allowed = {*_EVERYWHERE, "cann_provider"}
    for name, value in options.given().items():
        if name not in allowed:
            text = f"{name} is an option of ATC; format {format_} is not compiled by it"
            yield Complaint(name, str(value)[:80], text, "leave it out, or use format om")
