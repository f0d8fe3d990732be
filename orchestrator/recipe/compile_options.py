"""What a recipe may ask of a target's compiler (`targets[].compile`), in ATC's own names.

What the recipe says elsewhere (SoC, precision, shapes, nodes to keep) and what we choose ourselves (paths, reports) has no
field here. Which options exclude each other, and which SoC knows which, is checked by `orchestrator.ascend.atc_checks`.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.recipe.fields import Duration, Flag, Model, Number, Size, Text, Whole, Word

_PLAIN: Final = re.compile(r"[^\x00-\x1f\x7f\"'`$\\-][^\x00-\x1f\x7f\"'`$\\]*")


def _wrong(text: str) -> PydanticCustomError:
    return PydanticCustomError("wrong_value", "{text}", {"text": text})


def _plain(value: str) -> str:
    if not _PLAIN.fullmatch(value) or len(value) > 4096:
        raise _wrong(f"{value[:60]!r} must be plain text: no quotes, no control characters, not starting with `-`")
    return value


def _list_item(value: str) -> str:
    if set(value) & set(";,"):
        raise _wrong(f"{value[:60]!r} holds `;` or `,`, which separate the items of a list")
    return _plain(value)


Plain = Annotated[Text, AfterValidator(_plain)]
"""Text that can be one value of a command line."""
Item = Annotated[Text, AfterValidator(_list_item)]
"""One item of a list that ATC separates by `;` or `,`."""

ImplMode = Literal[
    "high_precision", "high_performance", "enable_float_32_execution", "support_out_of_bound_index", "keep_fp16",
    "super_performance",
]  # fmt: skip


class Aipp(Model):
    """AIPP: the device itself turns a picture of bytes into the model's input. Names are those of ATC's AIPP file.

    An input with AIPP becomes UINT8 NHWC. Per channel: out = (in - mean_chn - min_chn) * var_reci_chn.
    """

    aipp_mode: Literal["static", "dynamic"] = Field(
        "static", description="static: fixed here. dynamic: given with every request through one more input."
    )
    input: Word | None = Field(None, description="The model's input that is a picture; the first one when absent.")
    input_format: Literal[
        "YUV420SP_U8", "XRGB8888_U8", "RGB888_U8", "YUV400_U8", "YUV422SP_U8", "YUYV_U8", "AYUV444_U8", "ARGB8888_U8"
    ] = Field("RGB888_U8", description="What the picture's bytes are.")  # fmt: skip
    src_image_size_w: Size | None = Field(None, description="Width of the picture; needed for static AIPP with a crop.")
    src_image_size_h: Size | None = Field(None, description="Height of the picture.")
    max_src_image_size: Size | None = Field(None, description="Bytes of the largest picture; dynamic needs it.")
    crop: tuple[Whole, Whole, Size, Size] | None = Field(None, description="[left, top, width, height] to cut out.")
    padding: tuple[Whole, Whole, Whole, Whole] | None = Field(
        None, description="[left, right, top, bottom] columns and rows of zeros around it."
    )
    rbuv_swap_switch: Flag = Field(False, description="Swap R and B (or U and V).")
    ax_swap_switch: Flag = Field(False, description="Move A (or X) from the first channel to the last.")
    matrix: tuple[Whole, ...] | None = Field(
        None, min_length=9, max_length=9, description="Colour conversion matrix, 9 numbers, row by row, times 256."
    )
    input_bias: tuple[Whole, ...] | None = Field(None, min_length=3, max_length=3, description="Before the matrix.")
    output_bias: tuple[Whole, ...] | None = Field(None, min_length=3, max_length=3, description="After the matrix.")
    mean_chn: tuple[Annotated[Whole, Field(ge=0, le=255)], ...] = Field(
        (), max_length=4, description="Whole numbers taken off each channel."
    )
    min_chn: tuple[Number, ...] = Field((), max_length=4, description="Fractions taken off each channel.")
    var_reci_chn: tuple[Number, ...] = Field((), max_length=4, description="Factors of each channel.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.aipp_mode == "dynamic" and self.max_src_image_size is None:
            raise _wrong("dynamic AIPP needs `max_src_image_size`")
        if (self.src_image_size_w is None) != (self.src_image_size_h is None):
            raise _wrong("`src_image_size_w` and `src_image_size_h` go together")
        if self.crop is not None and self.src_image_size_w is not None and self.src_image_size_h is not None:
            left, top, width, height = self.crop
            if left < 0 or top < 0 or left + width > self.src_image_size_w or top + height > self.src_image_size_h:
                raise _wrong(f"crop {list(self.crop)} leaves {self.src_image_size_w} x {self.src_image_size_h}")
        if self.padding is not None and min(self.padding) < 0:
            raise _wrong(f"padding {list(self.padding)} is negative")
        if self.matrix is None and (self.input_bias or self.output_bias):
            raise _wrong("`input_bias` and `output_bias` need a `matrix`")
        return self


class OpPrecision(Model):
    """How exact single operators are computed (ATC's --op_precision_mode)."""

    by_type: dict[Item, ImplMode] = Field({}, description="Ascend operator type -> mode, e.g. Exp: high_precision.")
    by_node: dict[Plain, ImplMode] = Field({}, description="Node -> mode; beats the type.")


class CannProvider(Model):
    """Options of onnxruntime's CANN provider, for format onnx with a SoC. It knows no others."""

    npu_mem_limit: Size | None = Field(None, description="Bytes of device memory that it may take.")
    arena_extend_strategy: Literal["kNextPowerOfTwo", "kSameAsRequested"] | None = Field(
        None, description="How its memory grows."
    )
    enable_cann_graph: Flag = Field(True, description="Compile whole graphs; false runs operator by operator.")
    enable_cann_subgraph: Flag = Field(False, description="Let subgraphs of control flow be compiled too.")
    dump_om_model: Flag = Field(True, description="Keep the compiled graph, so that the next start is quick.")


def _gear(sizes: tuple[int, int]) -> tuple[int, int]:
    if sizes[0] > sizes[1]:
        raise _wrong(f"a range goes from low to high, not {list(sizes)}")
    return sizes


Range = Annotated[tuple[Size, Size], AfterValidator(_gear)]
DataType = Literal[
    "FP32", "FP16", "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64", "DOUBLE",
    "HIF8", "FP8E5M2", "FP8E4M3FN",
]  # fmt: skip


class CompileOptions(Model):
    """Options of the compiler; every one is optional and the compiler's own default is taken where it is absent."""

    timeout: Duration | None = Field(None, description="Time limit of one compilation; 30m when absent.")
    ranges: dict[Word, Range] = Field(
        {}, description="Dimension -> [least, most]: a model for any size between, in place of gears (not on 310B)."
    )
    input_format: Literal["NCHW", "NCDHW", "ND"] | None = Field(None, description="Layout of the inputs; NCHW.")
    input_fp16_nodes: tuple[Item, ...] = Field((), description="Inputs that the caller gives as float16.")
    out_nodes: tuple[Item, ...] = Field((), description="Outputs, as `node:0` or by their ONNX names; one style only.")
    output_type: DataType | None = Field(None, description="Element type of every output.")
    output_types: dict[Item, DataType] = Field({}, description="Element type by output `node:0`; needs out_nodes.")
    aipp: tuple[Aipp, ...] = Field((), description="Pictures as inputs: AIPP, one entry per input.")
    op_precision: OpPrecision | None = Field(None, description="Exactness of single operators.")
    op_select_implmode: (
        Literal["high_precision", "high_performance", "high_precision_for_all", "high_performance_for_all"] | None
    ) = Field(None, description="Kernels to prefer; deprecated by the vendor, `op_precision` replaces it.")
    optypelist_for_implmode: tuple[Item, ...] = Field((), description="Operator types it applies to.")
    allow_hf32: Flag | None = Field(None, description="float32 as HF32 (11-bit mantissa) on matrix units: A2, A3, 950.")
    is_weight_clip: Flag | None = Field(
        None, description="Clip weights beyond float16 to 65504, in silence (the default); false lets them become inf."
    )
    fusion_off: tuple[Item, ...] = Field(
        (), description="Fusion passes to switch off, or `ALL`; to find accuracy loss."
    )
    buffer_optimize: Literal["l1_optimize", "l2_optimize", "off_optimize"] | None = Field(
        None, description="Which on-chip buffer is optimised for."
    )
    disable_reuse_memory: Flag | None = Field(None, description="Every tensor gets memory of its own; for debugging.")
    oo_level: Literal["O1", "O3"] | None = Field(None, description="Level of graph optimisation; O3.")
    deterministic: Flag | None = Field(None, description="The same numbers every time, slower.")
    jit_compile: Annotated[Whole, Field(ge=0, le=2)] | None = Field(
        None, description="0: use the kernels that are installed; 1: compile them; 2: choose by shape."
    )
    aicore_num: Annotated[str, Field(pattern=r"^\d{1,4}(\|\d{1,4})?$")] | None = Field(
        None, description="Number of cores to compile for, e.g. `24` or `24|48` (matrix and vector)."
    )
    virtual_type: Flag | None = Field(None, description="Compile for a slice of the device (vNPU).")
    op_compiler_cache_mode: Literal["enable", "force", "disable"] | None = Field(
        None, description="Reuse compiled kernels between compilations; the site keeps them. disable."
    )
    external_weight: Annotated[Whole, Field(ge=0, le=2)] | None = Field(
        None, description="1 or 2: weights in files beside the .om, which then travel with it."
    )
    log: Literal["debug", "info", "warning", "error", "null"] | None = Field(None, description="Detail of the log.")
    status_check: Flag | None = Field(
        None, description="Kernels note overflow; slow, for debugging; only where the SoC saturates (310B, 310P, 910)."
    )
    op_debug_level: Annotated[Whole, Field(ge=0, le=4)] | None = Field(
        None, description="What kernels leave for debuggers."
    )
    host_env_os: Literal["linux"] | None = Field(None, description="System that loads the .om.")
    host_env_cpu: Literal["aarch64", "x86_64"] | None = Field(
        None, description="Processor that loads the .om, where it is not the one that compiles."
    )
    cann_provider: CannProvider | None = Field(None, description="For format onnx with a SoC.")

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if self.optypelist_for_implmode and self.op_select_implmode is None:
            raise _wrong("`optypelist_for_implmode` needs `op_select_implmode`")
        if self.output_types and not self.out_nodes:
            raise _wrong("`output_types` needs `out_nodes`")
        if self.output_types and self.output_type is not None:
            raise _wrong("give `output_type` for all outputs or `output_types` by output, not both")
        if (self.host_env_cpu is None) != (self.host_env_os is None):
            raise _wrong("`host_env_os` and `host_env_cpu` go together")
        return self

    def given(self) -> dict[str, object]:
        """Return the options that differ from their defaults, by name."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if value not in (None, (), {})}
