"""Names of the graph rewrites that a target may switch; the rewrites themselves are in `graph/rewrites`.

Kept here as plain names because recipes are checked without loading ONNX; a test holds both lists equal.
"""

from __future__ import annotations

from typing import Final

REWRITE_NAMES: Final = (
    "complete_lstm",
    "conv1d_to_2d",
    "decompose_cast_like",
    "decompose_composites",
    "decompose_einsum",
    "decompose_gelu",
    "decompose_group_normalization",
    "decompose_hard_swish",
    "decompose_instance_normalization",
    "decompose_layer_normalization",
    "decompose_mish",
    "decompose_reduce_norms",
    "decompose_rms_normalization",
    "decompose_swish",
    "decompose_trilu",
    "fix_shapes",
    "fold_constants",
    "lower_opset",
    "name_nodes",
    "narrow_float64",
    "narrow_int64",
    "reshape_joining_inputs",
    "slice_shape",
    "split_large_kernel",
    "strip_dilations",
    "write_out_defaults",
)
