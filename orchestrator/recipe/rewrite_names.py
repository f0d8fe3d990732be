"""Names of the graph rewrites that a target may switch; the rewrites themselves are in `graph/rewrites`.

Kept here as plain names because recipes are checked without loading ONNX; a test holds both lists equal.
"""

from __future__ import annotations

from typing import Final

REWRITE_NAMES: Final = (
    "conv1d_to_2d",
    "decompose_gelu",
    "decompose_group_normalization",
    "decompose_hard_swish",
    "decompose_layer_normalization",
    "fix_shapes",
    "fold_constants",
    "lower_opset",
    "narrow_float64",
    "narrow_int64",
    "split_large_kernel",
    "strip_dilations",
)
