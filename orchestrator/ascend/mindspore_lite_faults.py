"""What MindSpore Lite's converter means by its words: its native text, read into typed errors with a fix.

`ERROR` lines appear in successful conversions too, so this is asked only after a failure.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from orchestrator.ascend.mindspore_lite_process import Finished
from orchestrator.core.errors import DeviceError, GateError, InfraError, OrchestratorError

_NO_PARSER: Final = re.compile(r"not support onnx data type ([A-Za-z_]\w*)")
_NO_TYPE: Final = re.compile(r"(?:not support onnx data type|unsupported onnx (?:data )?type\D*) *(\d+)")
_LINE: Final = re.compile(
    r"^\[(?:ERROR|CRITICAL)\][^\[]*\[([^\]:]+/)?(?P<file>[^\]/:]+):\d+\] (?P<text>.+)$", re.MULTILINE
)
_NO_CANN: Final = re.compile(
    r"cannot open shared object file|Failed to register Ascend plugin|"
    r"libascend_(?:pass|kernel)_plugin\S* failed|Environment variable ASCEND_",
    re.IGNORECASE,
)
_SHOWN: Final = 4


class Fault(NamedTuple):
    """A text of the converter, its stable name, and what it means in our words."""

    pattern: str
    reason: str
    meaning: str
    hint: str


FAULTS: Final = (
    Fault(
        "pooling op not support dilations",
        "pool_dilations",
        "its pooling knows no dilations, not even dilations of 1",
        "the rewrite `strip_dilations` drops those that are all 1",
    ),
    Fault(
        "kernel_size/stride/dilation is nullptr",
        "conv_strides",
        "its Conv needs the attribute `strides` written out, also where it is 1",
        "write it out, as torch's exporters do",
    ),
    Fault(
        "outside_input_node should has data",
        "captured_value",
        "its If takes no value of the graph around it that is not a constant",
        "compute both branches and choose with Where",
    ),
    Fault(
        r"gamma_tensor->ElementsNum\(\) must be equal to channel",
        "instance_norm_rank",
        "its InstanceNormalization works on 4 dimensions only",
        "the rewrite `decompose_group_normalization` avoids it",
    ),
    Fault(
        "Unsupported datatype from", "cast", "its Cast does not know this pair of types", "compare with 0 in its stead"
    ),
    Fault(
        "Convert type error, unsupported type",
        "loop_types",
        "it cannot write a Loop with these state types to MindIR",
        "unroll the loop before the export",
    ),
)


def convert_error(finished: Finished, *, shapes: bool, ascend: bool) -> OrchestratorError:
    """Name what a failed conversion failed of.

    Args:
        finished: The child; it died, or its answer holds an `error` or no file.
        shapes: Whether `input_shape` was given.
        ascend: Whether `ascend_oriented` was asked for.
    """
    ops = sorted(set(_NO_PARSER.findall(finished.log)))
    if ops:
        return GateError(
            f"MindSpore Lite's converter has no parser for {', '.join(ops)}",
            hint="prepare the graph with the rewrites that decompose them; "
            "`orchestrate coverage --toolchain mindspore-lite` names the nodes",
            details=_details("unsupported_ops", finished) | {"ops": ops},
        )
    types = sorted({int(number) for number in _NO_TYPE.findall(finished.log)})
    if types:
        return GateError(
            f"MindSpore Lite's converter does not read element type {', '.join(map(str, types))} of ONNX",
            hint="use float32, float16, int32, int64, int8, uint8 or bool",
            details=_details("unsupported_types", finished) | {"types": types},
        )
    if finished.died_of:
        return _death(finished, shapes=shapes)
    if ascend and _NO_CANN.search(finished.log):
        return DeviceError(
            "MindSpore Lite cannot convert for Ascend here: CANN's libraries are not found",
            hint="source CANN's set_env.sh first, or convert with optimize `general` for a rehearsal",
            details=_details("cann_missing", finished),
        )
    for fault in FAULTS:
        if re.search(fault.pattern, finished.log):
            message = f"MindSpore Lite's {_tool(finished)} refused the graph: {fault.meaning}"
            return GateError(message, hint=fault.hint, details=_details(fault.reason, finished))
    text = str(finished.answer.get("error", "")).split("\n")[0] or "it ended well but wrote no file"
    return GateError(
        f"MindSpore Lite's {_tool(finished)} refused the graph: {text}{_native(finished.log)}",
        hint="the whole log is in the error's details",
        details=_details("no_file" if finished.answer.get("missing") else f"{finished.stage}_failed", finished),
    )


def run_error(finished: Finished) -> OrchestratorError:
    """Name what a failed run of a MindIR failed of."""
    if finished.died_of:
        return _death(finished, shapes=False)
    return GateError(
        f"MindSpore Lite cannot run the MindIR: {finished.answer.get('error')}{_native(finished.log)}",
        hint="convert it again with the same version that runs it; its inputs keep their names and shapes",
        details=_details("run_failed" if finished.stage.startswith("predict") else "build_failed", finished),
    )


def _death(finished: Finished, *, shapes: bool) -> OrchestratorError:
    if finished.died_of == "SIGKILL":  # ours come as time-outs
        return InfraError(
            f"MindSpore Lite was killed at {finished.stage!r}, twice",
            hint="the kernel kills so when memory runs out: give the machine more, or convert a smaller model",
            details=_details("killed", finished),
        )
    hint = "give the converter a graph of fixed shapes, or of another opset: it dies by the form of the graph"
    if shapes:
        hint = "fix the shapes in the graph (the rewrite `fix_shapes`), not by the converter's input_shape"
    return GateError(
        f"MindSpore Lite's {_tool(finished)} died of {finished.died_of} at {finished.stage!r}, twice",
        hint=hint,
        details=_details("input_shape_crash" if shapes else "crashed", finished) | {"signal": finished.died_of},
    )


def _tool(finished: Finished) -> str:
    return "converter" if finished.stage in ("import", "convert") else "CPU runtime"


def _native(log: str) -> str:
    lines = list(dict.fromkeys(match["text"].strip() for match in _LINE.finditer(log)))
    return f" ({'; '.join(line[:200] for line in lines[:_SHOWN])})" if lines else ""


def _details(reason: str, finished: Finished) -> dict[str, object]:
    return {"reason": reason, "stage": finished.stage, "log": finished.log[-16_000:]}
