"""How rounding to 16 bits and back is written, as nodes and in numpy, and how sessions over such graphs are run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from orchestrator.ascend.precision import Low
from orchestrator.graph.twin.sketch import Sketch

Array = np.ndarray[Any, Any]

LARGEST: Final[Mapping[Low, float]] = {"fp16": 65504.0, "bf16": float.fromhex("0x1.fep127")}
"""Largest finite value of each 16-bit format."""

COPY_LIMIT_BYTES: Final = 16 * 2**20
"""A weight needed both raw and rounded is stored twice up to this size; above it the graph rounds it as it runs."""

_FOLDING: Final = "optimization.constant_folding_max_output_size_in_bytes"
_ort = cast("Any", onnxruntime)  # ships without types


def round_nodes(source: str, target: str, fmt: Low, *, saturating: bool, prefix: str) -> list[onnx.NodeProto]:
    """Return nodes that round the fp32 tensor `source` to `fmt` and back: `target` is fp32 again.

    To nearest, ties to even, subnormals kept. ONNX Runtime keeps such pairs at every optimisation level.

    Args:
        source: Name of an fp32 tensor.
        target: Name for the rounded one.
        fmt: The 16-bit format.
        saturating: Turn infinity into the largest finite value and NaN into zero, instead of keeping both.
        prefix: Start of the names of nodes and tensors in between; unique in the model.
    """
    low = TensorProto.FLOAT16 if fmt == "fp16" else TensorProto.BFLOAT16
    made = Sketch(prefix)
    if saturating:
        zero, least, most = (
            made.number(value, part)
            for part, value in (("zero", 0.0), ("least", -LARGEST[fmt]), ("most", LARGEST[fmt]))
        )
        number = made.add("Where", [made.add("IsNaN", [source], "isnan"), zero, source], "number")
        source = made.add("Clip", [number, least, most], "clip")
    made.add("Cast", [made.add("Cast", [source], "down", to=low)], "up", output=target, to=TensorProto.FLOAT)
    return made.nodes


def session_options(threads: int = 0) -> Any:
    """Return options for sessions over twins: nodes run in the order of the file and memory goes back at once.

    In the default order the runtime keeps most of the tensors of a probed graph alive at once. Big weights that the graph
    rounds are not folded into second copies either.
    """
    options = _ort.SessionOptions()
    options.execution_order = _ort.ExecutionOrder.PRIORITY_BASED
    options.enable_mem_pattern = False
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    options.add_session_config_entry(_FOLDING, str(COPY_LIMIT_BYTES))
    return options


def round_weight(values: Array, fmt: Low, *, saturating: bool) -> Array:
    """Round a weight as the compiler stores it: clipped to the format's range, infinity too, and back in fp32.

    Args:
        values: An fp32 array.
        fmt: The 16-bit format.
        saturating: Whether NaN becomes zero.
    """
    clipped = np.clip(values, -LARGEST[fmt], LARGEST[fmt])
    if saturating:
        clipped = np.where(np.isnan(clipped), np.float32(0), clipped)
    low = np.float16 if fmt == "fp16" else ml_dtypes.bfloat16
    return clipped.astype(low).astype(np.float32)
