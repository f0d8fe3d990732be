"""One ATC command line as typed fields: what the recipe asks for, and what the job itself decides.

Values become `--name=value` items of an argument list; no shell ever sees them. `atc_checks.py` says which exclude each other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from orchestrator.core.errors import UsageError
from orchestrator.recipe.compile_options import CompileOptions, Plain
from orchestrator.recipe.fields import Size, Soc

ONNX_FRAMEWORK: Final = 5

PrecisionV1 = Literal[
    "force_fp16", "force_fp32", "cube_fp16in_fp32out", "allow_fp32_to_fp16", "must_keep_origin_dtype",
    "allow_mix_precision", "allow_mix_precision_fp16", "allow_mix_precision_bf16", "allow_fp32_to_bf16",
]  # fmt: skip
PrecisionV2 = Literal[
    "fp16", "origin", "cube_fp16in_fp32out", "mixed_float16", "mixed_bfloat16", "mixed_hif8", "cube_hif8"
]

V2_BY_WORD: Final[dict[str, PrecisionV2]] = {
    "fp16": "fp16",
    "mixed_float16": "mixed_float16",
    "cube_fp16in_fp32out": "cube_fp16in_fp32out",
    "mixed_bfloat16": "mixed_bfloat16",
    "origin": "origin",
    "fp32": "origin",
}
"""Our word for a precision -> ATC's; a graph in fp32 that keeps its own types is one where nothing is rounded."""

V1_BY_WORD: Final[dict[str, PrecisionV1]] = {
    "fp16": "force_fp16",
    "mixed_float16": "allow_mix_precision",
    "cube_fp16in_fp32out": "force_fp32",
    "mixed_bfloat16": "allow_mix_precision_bf16",
    "origin": "must_keep_origin_dtype",
    "fp32": "must_keep_origin_dtype",
}
"""The same for the older option, which is the only one that onnxruntime's CANN provider takes."""


class AtcOptions(CompileOptions):
    """A whole ATC call for an ONNX model (mode 0, framework 5)."""

    model: Path = Field(description="The ONNX file; external data lies beside it.")
    output: Path = Field(description="The result without its suffix; ATC adds .om, or _linux_<arch>.om.")
    soc_version: Soc = Field(description="SoC to compile for; must be the one that runs it.")
    input_shape: Plain = Field("", description="`name:1,3,-1,-1;name:` for every input; `1~10` is a range.")
    input_shape_range: Plain = Field("", description="`name:[1~10,3,-1]`; deprecated, input_shape takes ranges too.")
    dynamic_batch_size: tuple[Size, ...] = Field((), description="Gears of dimension 0.")
    dynamic_image_size: tuple[tuple[Size, Size], ...] = Field((), description="Gears of height and width (NCHW).")
    dynamic_dims: tuple[tuple[Size, ...], ...] = Field((), description="Gears: a value for every -1, in order.")
    precision_mode: PrecisionV1 | None = Field(None, description="Older form of precision_mode_v2.")
    precision_mode_v2: PrecisionV2 | None = Field(None, description="What is computed in which type; fp16.")
    modify_mixlist: Path | None = Field(
        None, description="JSON: operator types moved between the lists of mixed modes."
    )
    keep_dtype: Path | None = Field(None, description="Text: nodes that keep their type, one a line.")
    customize_dtypes: Path | None = Field(None, description="Text: types of single inputs and outputs.")
    op_precision_mode: Path | None = Field(None, description="INI: exactness of single operators.")
    insert_op_conf: Path | None = Field(None, description="AIPP file; `aipp` writes one.")
    fusion_switch_file: Path | None = Field(None, description="Fusion passes on and off; `fusion_off` writes one.")
    compression_optimize_conf: Path | None = Field(
        None, description="Quantisation after training; needs AMCT and an NPU."
    )
    op_compiler_cache_dir: Path | None = Field(None, description="Where compiled kernels are kept.")
    check_report: Path | None = Field(None, description="Where the parser reports each node it cannot read.")
    debug_dir: Path | None = Field(None, description="Where kernels leave what debuggers need.")
    mdl_bank_path: Path | None = Field(None, description="Tuning results of subgraphs (AOE).")
    op_bank_path: Path | None = Field(None, description="Tuning results of operators (AOE).")
    op_name_map: Path | None = Field(None, description="Names of custom operators.")

    def command(self, program: Path) -> list[str]:
        """Return the argument list.

        Raises:
            UsageError: A path or a name cannot be written as one value.
        """
        return [str(program), "--mode=0", f"--framework={ONNX_FRAMEWORK}", *(_item(n, v) for n, v in self._values())]

    def _values(self) -> list[tuple[str, str]]:
        values: list[tuple[str, str]] = []
        for name in _ORDER:
            value = getattr(self, name)
            if value is None or value in ("", ()):
                continue
            values.append((name, _TEXT.get(name, _plain)(value)))
        if self.output_types:
            values.append(("output_type", ";".join(f"{node}:{kind}" for node, kind in self.output_types.items())))
        return values


_ORDER: Final = (
    "model", "output", "soc_version", "input_format", "input_shape", "input_shape_range", "dynamic_batch_size",
    "dynamic_image_size", "dynamic_dims", "precision_mode", "precision_mode_v2", "modify_mixlist", "keep_dtype",
    "customize_dtypes", "op_precision_mode", "op_select_implmode", "optypelist_for_implmode", "allow_hf32",
    "is_weight_clip", "insert_op_conf", "input_fp16_nodes", "out_nodes", "output_type", "fusion_switch_file",
    "compression_optimize_conf", "buffer_optimize", "disable_reuse_memory", "oo_level", "deterministic", "jit_compile",
    "aicore_num", "virtual_type", "op_compiler_cache_mode", "op_compiler_cache_dir", "external_weight", "check_report",
    "log", "status_check", "op_debug_level", "debug_dir", "host_env_os", "host_env_cpu", "op_name_map",
    "mdl_bank_path", "op_bank_path",
)  # fmt: skip
"""Every field that is an option of ATC by the same name; the others become files first."""


def option_names() -> tuple[str, ...]:
    """Return the names that `--option name=value` takes: ATC's own, and none that the job itself decides."""
    return tuple(name for name in _ORDER if name not in {"model", "output", "soc_version", "check_report"})


def options_from_texts(texts: dict[str, str]) -> dict[str, object]:
    """Turn `name=value` texts, as ATC takes them on its command line, into fields.

    Raises:
        UsageError: An option is unknown or its value does not parse.
    """
    fields: dict[str, object] = {}
    for name, text in texts.items():
        if name not in option_names():
            raise UsageError(
                f"ATC has no option {name!r} that can be set here",
                place=f"--option {name}",
                hint=f"one of {', '.join(option_names())}",
            )
        try:
            fields[name] = _PARSE.get(name, _as_is)(text)
        except ValueError as error:
            raise UsageError(f"{text[:60]!r} is no value for {name}: {error}", place=f"--option {name}") from error
    return fields


def make(fields: dict[str, object]) -> AtcOptions:
    """Validate fields.

    Raises:
        UsageError: Each wrong value is named.
    """
    try:
        return AtcOptions.model_validate(fields)
    except ValidationError as error:
        problems = [
            {"option": ".".join(str(part) for part in item["loc"]), "message": str(item["msg"])}
            for item in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        first = problems[0]
        raise UsageError(
            "; ".join(f"{p['option']}: {p['message']}" for p in problems),
            place=f"--{first['option']}",
            hint="see the values that ATC takes in the option's description",
            details={"problems": problems},
        ) from error


def _item(name: str, value: str) -> str:
    if value.startswith("-") or not value or any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise UsageError(
            f"{value[:80]!r} cannot be the value of --{name}",
            place=f"--{name}",
            hint="a value is not empty, does not start with `-` and holds no control characters; rename it",
        )
    return f"--{name}={value}"


def _plain(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _commas(value: object) -> str:
    assert isinstance(value, tuple)
    return ",".join(str(part) for part in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _semicolons(value: object) -> str:
    assert isinstance(value, tuple)
    rows = [_commas(row) if isinstance(row, tuple) else str(row) for row in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return ";".join(rows)


def _true_false(value: object) -> str:
    return "true" if value else "false"


_TEXT: Final[dict[str, Callable[[object], str]]] = {
    "dynamic_batch_size": _commas,
    "dynamic_image_size": _semicolons,
    "dynamic_dims": _semicolons,
    "input_fp16_nodes": _semicolons,
    "out_nodes": _semicolons,
    "optypelist_for_implmode": _commas,
    "allow_hf32": _true_false,
}


def _as_is(text: str) -> object:
    return text


def _flag(text: str) -> bool:
    words = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in words:
        raise ValueError("write 1 or 0")
    return words[text.lower()]


def _input_file(text: str) -> Path:
    path = Path(text).expanduser().absolute()  # ATC runs in a folder of its own
    if not path.is_file():
        raise ValueError("there is no such file")
    return path


def _folder(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _rows(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(_numbers(row) for row in text.split(";"))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(";"))


_PARSE: Final[dict[str, Callable[[str], object]]] = {
    **dict.fromkeys(
        ("allow_hf32", "is_weight_clip", "disable_reuse_memory", "deterministic", "virtual_type", "status_check"), _flag
    ),
    **dict.fromkeys(("jit_compile", "external_weight", "op_debug_level"), int),
    **dict.fromkeys(
        (
            "modify_mixlist",
            "keep_dtype",
            "customize_dtypes",
            "op_precision_mode",
            "insert_op_conf",
            "fusion_switch_file",
            "compression_optimize_conf",
            "op_name_map",
        ),
        _input_file,
    ),
    **dict.fromkeys(("op_compiler_cache_dir", "debug_dir", "mdl_bank_path", "op_bank_path"), _folder),
    "dynamic_batch_size": _numbers,
    "dynamic_image_size": _rows,
    "dynamic_dims": _rows,
    "input_fp16_nodes": _names,
    "out_nodes": _names,
    "optypelist_for_implmode": _words,
}
