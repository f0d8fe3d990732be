"""Rewrites: small named passes over an ONNX graph, each with its equivalence, its default, and the toolchains it is for.

`prepare.py` runs those that a target needs, in the order of `REWRITES`, and proves each by running the graph before and
after. What they work around is named in `ascend/quirks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from orchestrator.ascend.quirks import QUIRKS
from orchestrator.ascend.toolchains import toolchain_called
from orchestrator.graph.rewrites.activations import (
    decompose_cast_like,
    decompose_gelu,
    decompose_hard_swish,
    decompose_mish,
    decompose_swish,
)
from orchestrator.graph.rewrites.base import TOOLCHAINS, Changes, Context, Problem, Rewrite, lacking, schema
from orchestrator.graph.rewrites.composites import COMPOSITES, decompose_composites, slice_shape
from orchestrator.graph.rewrites.convolutions import conv1d_to_2d, split_large_kernel
from orchestrator.graph.rewrites.defaults import write_out_defaults
from orchestrator.graph.rewrites.fold import fold_constants
from orchestrator.graph.rewrites.narrow import narrow_float64, narrow_int64
from orchestrator.graph.rewrites.normalizations import (
    decompose_group_normalization,
    decompose_instance_normalization,
    decompose_layer_normalization,
    decompose_rms_normalization,
)
from orchestrator.graph.rewrites.opset import lower_opset
from orchestrator.graph.rewrites.recurrent import complete_lstm
from orchestrator.graph.rewrites.reductions import decompose_einsum, decompose_reduce_norms, decompose_trilu
from orchestrator.graph.rewrites.shapes import fix_shapes, name_nodes, reshape_joining_inputs, strip_dilations

_LITE: Final = frozenset({"mindspore-lite"})

_LITE_FORMS: Final = {"MaxPool": "strip_dilations", "LSTM": "complete_lstm", "Shape": "slice_shape"}
"""Operators that stay, in a form that the toolchain takes."""

_IN_ORDER: Final = (
    Rewrite("name_nodes", "exact", "give every node a name of its own", True, TOOLCHAINS, name_nodes),
    Rewrite("fix_shapes", "exact", "fix the dimensions for which the target asks one size", True, None, fix_shapes),
    Rewrite("decompose_group_normalization", "tolerance", "GroupNormalization out of ReduceMean", True, TOOLCHAINS,
            decompose_group_normalization, frozenset({"GroupNormalization"})),
    Rewrite("narrow_float64", "tolerance", "compute in float32 what the graph computes in float64", True, TOOLCHAINS,
            narrow_float64),
    Rewrite("decompose_cast_like", "exact", "CastLike as Cast", True, TOOLCHAINS, decompose_cast_like,
            frozenset({"CastLike"})),
    Rewrite("decompose_gelu", "tolerance", "Gelu out of Erf or Tanh", True, TOOLCHAINS, decompose_gelu,
            frozenset({"Gelu"})),
    Rewrite("decompose_hard_swish", "tolerance", "HardSwish as x * HardSigmoid(x)", True, TOOLCHAINS,
            decompose_hard_swish, frozenset({"HardSwish"})),
    Rewrite("decompose_mish", "tolerance", "Mish as x * Tanh(Softplus(x))", True, TOOLCHAINS, decompose_mish,
            frozenset({"Mish"})),
    Rewrite("decompose_swish", "tolerance", "Swish as x * Sigmoid(alpha x)", True, TOOLCHAINS, decompose_swish,
            frozenset({"Swish"})),
    Rewrite("decompose_instance_normalization", "tolerance", "InstanceNormalization out of ReduceMean", True, _LITE,
            decompose_instance_normalization, frozenset({"InstanceNormalization"})),
    Rewrite("decompose_layer_normalization", "tolerance", "LayerNormalization out of ReduceMean, with its epsilon", True,
            TOOLCHAINS, decompose_layer_normalization, frozenset({"LayerNormalization"})),
    Rewrite("decompose_rms_normalization", "tolerance", "RMSNormalization out of ReduceMean", True, TOOLCHAINS,
            decompose_rms_normalization, frozenset({"RMSNormalization"})),
    Rewrite("decompose_reduce_norms", "tolerance", "ReduceL1 and ReduceL2 out of ReduceSum", True, TOOLCHAINS,
            decompose_reduce_norms, frozenset({"ReduceL1", "ReduceL2"})),
    Rewrite("decompose_composites", "tolerance", "small operators without a parser out of ones with", True, TOOLCHAINS,
            decompose_composites, COMPOSITES),
    Rewrite("slice_shape", "exact", "Shape of some axes as a Slice of the whole", True, _LITE, slice_shape),
    Rewrite("complete_lstm", "exact", "LSTM with all outputs named and its initial states stated", True, _LITE, complete_lstm),
    Rewrite("write_out_defaults", "exact", "state the attributes left to ONNX's defaults", True, _LITE, write_out_defaults),
    Rewrite("decompose_trilu", "exact", "Trilu as Where with a mask", True, TOOLCHAINS, decompose_trilu,
            frozenset({"Trilu"})),
    Rewrite("decompose_einsum", "tolerance", "Einsum of two operands as MatMul", True, TOOLCHAINS, decompose_einsum,
            frozenset({"Einsum"})),
    Rewrite("split_large_kernel", "tolerance", "Conv kernels above 255 and MaxPool windows above 256 in pieces", True,
            frozenset({"atc", "cann-ep"}), split_large_kernel),
    Rewrite("conv1d_to_2d", "exact", "Conv and pooling along one axis over an image of height 1", False, TOOLCHAINS,
            conv1d_to_2d),
    Rewrite("narrow_int64", "exact", "int64 inputs as int32; values must fit", False, TOOLCHAINS, narrow_int64),
    Rewrite("fold_constants", "exact", "compute once what depends on weights and fixed shapes only", True, TOOLCHAINS,
            fold_constants),
    Rewrite("strip_dilations", "exact", "take off MaxPool dilations that are all 1", True, _LITE, strip_dilations),
    Rewrite("reshape_joining_inputs", "exact", "read a fixed image input through a Reshape where it joins what is computed",
            True, _LITE, reshape_joining_inputs),
    Rewrite("lower_opset", "exact", "bring the graph down to an opset that the toolchain reads", True, None, lower_opset),
)  # fmt: skip

REWRITES: Final[Mapping[str, Rewrite]] = {
    rewrite.name: replace(rewrite, quirks=tuple(q.name for q in QUIRKS.values() if q.rewrite == rewrite.name))
    for rewrite in _IN_ORDER
}
"""Name -> rewrite, in the order in which they run."""


def rewrite_for(op_type: str, domain: str, opset: int, toolchain: str) -> str | None:
    """Return the rewrite that removes such a node, or brings it to where the toolchain reads it; None if there is none.

    Args:
        op_type: The operator.
        domain: Its domain; only `ai.onnx` has rewrites.
        opset: The model's opset.
        toolchain: Key of the toolchain.
    """
    if domain not in {"", "ai.onnx"} or toolchain not in TOOLCHAINS:
        return None
    top = toolchain_called(toolchain).maximum
    target = opset if top is None else min(opset, top)
    for rewrite in _IN_ORDER:
        if op_type in rewrite.removes and (rewrite.toolchains is None or toolchain in rewrite.toolchains):
            return rewrite.name
    if toolchain == "mindspore-lite" and op_type in _LITE_FORMS:
        return _LITE_FORMS[op_type]
    if opset > target and schema(op_type, target) is not None:
        return "lower_opset"
    return None


__all__ = ["REWRITES", "Changes", "Context", "Problem", "Rewrite", "lacking", "rewrite_for"]
