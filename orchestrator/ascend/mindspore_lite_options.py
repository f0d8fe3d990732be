"""Options of MindSpore Lite's converter that only its Ascend side reads, typed; it takes them from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from orchestrator.core.errors import PlanError

PRECISIONS: Final[Mapping[str, str]] = {
    "fp16": "enforce_fp16",
    "mixed_float16": "preferred_optimal",
    "cube_fp16in_fp32out": "enforce_fp32",
    "origin": "enforce_origin",
    "fp32": "enforce_origin",  # of a float32 graph; its `enforce_fp32` still multiplies matrices in fp16
}


@dataclass(frozen=True, slots=True)
class AscendOptions:
    """What `ascend_oriented` reads beside the graph, all optional.

    Attributes:
        precision: A precision mode of the recipe; None leaves the tool's default, which is fp16.
        input_format: `NCHW`, `NHWC` or `ND`.
        input_shape: Shapes by input name with -1 where gears vary; only together with `dynamic_dims`.
        dynamic_dims: Gears: for each, the values of all -1 in order.
        op_select_impl_mode: `high_performance` or `high_precision`.
        output_type: `FP32`, `FP16` or `UINT8`.
        aoe_mode: Tuning: `subgraph turning, operator turning` as the tool spells them.
        fusion_switch_config_file: File that turns fusions off.
        insert_op_config_file: AIPP file.
    """

    precision: str | None = None
    input_format: Literal["NCHW", "NHWC", "ND"] | None = None
    input_shape: Mapping[str, Sequence[int]] | None = None
    dynamic_dims: Sequence[Sequence[int]] | None = None
    op_select_impl_mode: Literal["high_performance", "high_precision"] | None = None
    output_type: Literal["FP32", "FP16", "UINT8"] | None = None
    aoe_mode: str | None = None
    fusion_switch_config_file: Path | None = None
    insert_op_config_file: Path | None = None

    def to_config(self) -> str:
        """Return the text of the converter's configuration file.

        Raises:
            PlanError: MindSpore Lite has no such precision, or gears and shapes do not go together.
        """
        if self.precision is not None and self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise PlanError(f"MindSpore Lite has no precision {self.precision!r}", hint=f"use one of {known}")
        if (self.dynamic_dims is None) != (self.input_shape is None):
            raise PlanError(
                "MindSpore Lite's gears need both input_shape and dynamic_dims", hint="give both or neither"
            )
        shapes = {name: "[" + ",".join(map(str, shape)) + "]" for name, shape in (self.input_shape or {}).items()}
        rows = {
            "precision_mode": PRECISIONS[self.precision] if self.precision else None,
            "input_format": self.input_format,
            "input_shape": ";".join(f"{name}:{shape}" for name, shape in shapes.items()) or None,
            "dynamic_dims": ",".join("[" + ",".join(map(str, gear)) + "]" for gear in self.dynamic_dims or ()) or None,
            "op_select_impl_mode": self.op_select_impl_mode,
            "output_type": self.output_type,
            "aoe_mode": self.aoe_mode,
            "fusion_switch_config_file_path": self.fusion_switch_config_file,
            "insert_op_config_file_path": self.insert_op_config_file,
        }
        lines = [f"{name}={_plain(name, str(value))}" for name, value in rows.items() if value is not None]
        return "\n".join(["[ascend_context]", *lines]) + "\n" if lines else ""


def _plain(name: str, value: str) -> str:
    if any(character in value for character in "\r\n#"):
        raise PlanError(f"MindSpore Lite's option {name} cannot hold {value!r}", hint="one line, no `#`")
    return value
