"""What changed in ONNX between opsets 11 and 25, operator by operator: the rules that take a node back.

A rule stands under the opset that brought the change, and is applied when the graph goes from there (or above) to below.
It changes the node, or replaces it, and returns whether it did; it raises CannotRewrite where the old opset cannot say it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import onnx_ir as ir

from orchestrator.graph.rewrites.base import CannotRewrite
from orchestrator.graph.rewrites.build import (
    Builder,
    argument,
    attribute,
    constant_of,
    dims_of,
    need_rank,
    needed,
    rank_of,
)
from orchestrator.graph.rewrites.composites import or_equal, shape_part
from orchestrator.graph.rewrites.opset_layout import batch_first
from orchestrator.graph.rewrites.opset_resize import resize_13, resize_18

Rule = Callable[[Builder, ir.Node], bool]


def set_attribute(node: ir.Node, name: str, value: int | str | tuple[int, ...]) -> None:
    """Set or replace an attribute."""
    node.attributes[name] = ir.convenience.convert_attribute(name, value)


def _constant_ints(node: ir.Node, index: int, what: str) -> tuple[int, ...]:
    array = constant_of(argument(node, index))
    if array is None:
        raise CannotRewrite(f"its {what} are computed; the older opset has them as an attribute")
    return tuple(int(value) for value in array.reshape(-1))


def _input_to_attribute(node: ir.Node, index: int, name: str, what: str) -> bool:
    if argument(node, index) is None:
        return False
    set_attribute(node, name, _constant_ints(node, index, what))
    node.resize_inputs(index)
    return True


def _reduce(b: Builder, node: ir.Node) -> bool:
    """Axes were an attribute; `noop_with_empty_axes` did not exist."""
    empty = argument(node, 1) is None or _constant_ints(node, 1, "axes") == ()
    if empty and attribute(node, "noop_with_empty_axes", 0):
        b.replace(needed(node, 0))
        return True
    touched = node.attributes.pop("noop_with_empty_axes", None) is not None
    if empty:
        touched = touched or len(node.inputs) > 1
        node.resize_inputs(1)
        return touched
    return _input_to_attribute(node, 1, "axes", "axes")


def _squeeze(b: Builder, node: ir.Node) -> bool:
    del b
    return _input_to_attribute(node, 1, "axes", "axes")


def _split_18(b: Builder, node: ir.Node) -> bool:
    """`num_outputs` did not exist: equal parts, or sizes where the last part is smaller."""
    parts = node.attributes.pop("num_outputs", None)
    if argument(node, 1) is not None:
        return parts is not None
    x, axis, count = needed(node, 0), int(attribute(node, "axis", 0)), len(node.outputs)
    dims = dims_of(x)
    size = dims[axis] if dims else None
    if size is None:
        raise CannotRewrite("it splits a dimension of unknown size into parts, the last of which may be smaller")
    if size % count:
        part = -(-size // count)
        sizes = [part] * (count - 1) + [size - part * (count - 1)]
        node.resize_inputs(2)
        node.replace_input_with(1, b.ints(sizes, "split"))
    return True


def _split_13(b: Builder, node: ir.Node) -> bool:
    del b
    return _input_to_attribute(node, 1, "split", "sizes")


def _reshape_14(b: Builder, node: ir.Node) -> bool:
    """With `allowzero` a 0 is a size of 0; without, it copies the input's: they differ only for empty tensors."""
    del b
    found = node.attributes.pop("allowzero", None)
    if found is None or found.as_int() == 0:
        return found is not None
    shape = constant_of(argument(node, 1))
    if shape is not None and not np.all(shape):
        raise CannotRewrite("its constant shape holds a 0 that means an empty tensor")
    return True


def _batch_norm_14(b: Builder, node: ir.Node) -> bool:
    del b
    if attribute(node, "training_mode", 0):
        raise CannotRewrite("it is in training mode; export the model in eval mode")
    return node.attributes.pop("training_mode", None) is not None


def _pad_18(b: Builder, node: ir.Node) -> bool:
    """`axes` did not exist: pads are written for all axes."""
    if argument(node, 3) is None:
        return _shorten(node, 3)
    rank, axes = need_rank(needed(node, 0), "the input"), _constant_ints(node, 3, "axes")
    pads = _constant_ints(node, 1, "pads")
    full = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        full[axis % rank], full[axis % rank + rank] = pads[place], pads[place + len(axes)]
    node.replace_input_with(1, b.ints(full, "pads"))
    return _shorten(node, 3)


def _pad_19(b: Builder, node: ir.Node) -> bool:
    del b
    if attribute(node, "mode", "constant") == "wrap":
        raise CannotRewrite("mode 'wrap' came with opset 19")
    return False


def _shorten(node: ir.Node, length: int) -> bool:
    """Take off inputs from `length` on, and those before that are left out."""
    kept = min(length, len(node.inputs))
    while kept and node.inputs[kept - 1] is None:
        kept -= 1
    if kept == len(node.inputs):
        return False
    node.resize_inputs(kept)
    return True


def _ones_dropped(name: str) -> Rule:
    def rule(b: Builder, node: ir.Node) -> bool:
        del b
        values = attribute(node, name)
        if values is None:
            return False
        if any(int(value) != 1 for value in values):
            raise CannotRewrite(f"{name} {list(values)} came later")
        del node.attributes[name]
        return True

    return rule


def _only(name: str, default: str, *allowed: str) -> Rule:
    """The attribute may say only these before the change."""

    def rule(b: Builder, node: ir.Node) -> bool:
        del b
        value = attribute(node, name, default)
        if value not in allowed:
            raise CannotRewrite(f"{name} {value!r} came later")
        return False

    return rule


def _drop(name: str, default: str, *harmless: str) -> Rule:
    """The attribute did not exist before the change; these values are what the operator did then."""

    def rule(b: Builder, node: ir.Node) -> bool:
        del b
        value = attribute(node, name, default)
        if value not in harmless:
            raise CannotRewrite(f"{name} {value!r} came later")
        return node.attributes.pop(name, None) is not None

    return rule


def _grid_sample_20(b: Builder, node: ir.Node) -> bool:
    del b
    if rank_of(argument(node, 0)) not in {None, 4}:
        raise CannotRewrite("before opset 20 it takes images only")
    mode = str(attribute(node, "mode", "linear"))
    set_attribute(node, "mode", {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode))
    return True


def _softmax_13(b: Builder, node: ir.Node) -> bool:
    """Before 13 all axes from `axis` on are taken as one; the same where it is the last."""
    x = needed(node, 0)
    axis = int(attribute(node, "axis", -1))
    if axis == -1:
        set_attribute(node, "axis", -1)
        return True
    rank = need_rank(x, "the input")
    axis %= rank
    if axis == rank - 1:
        set_attribute(node, "axis", axis)
        return True
    swap = list(range(rank))
    swap[axis], swap[-1] = swap[-1], swap[axis]
    turned = b.op("Transpose", [x], "turned", dtype=x.dtype, shape=[None] * rank, perm=swap)
    done = b.op(node.op_type, [turned], "last", like=turned, axis=rank - 1)
    b.replace(b.op("Transpose", [done], "back", like=node.outputs[0], perm=swap))
    return True


def _dropout_12(b: Builder, node: ir.Node) -> bool:
    del b
    training = constant_of(argument(node, 2))
    if argument(node, 2) is not None and (training is None or bool(training.reshape(-1)[0])):
        raise CannotRewrite("it is in training mode; export the model in eval mode")
    node.resize_inputs(1)
    node.attributes.pop("seed", None)
    return True


def _pow_12(b: Builder, node: ir.Node) -> bool:
    """Base and exponent had to have one type, and that had to be a float."""
    base, exponent = needed(node, 0), needed(node, 1)
    if base.dtype is None or base.dtype == exponent.dtype:
        return False
    if base.dtype not in {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16}:
        raise CannotRewrite(f"it raises {base.dtype} to {exponent.dtype}")
    node.replace_input_with(
        1, b.op("Cast", [exponent], "exponent", like=exponent, dtype=base.dtype, to=int(base.dtype))
    )
    return True


def _constant_12(b: Builder, node: ir.Node) -> bool:
    del b
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    for name, dtype in kinds.items():
        if name in node.attributes:
            value = np.array(node.attributes.pop(name).value, dtype)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(value))
            return True
    return False


def _quantize_13(b: Builder, node: ir.Node) -> bool:
    """Per-channel scales came with 13; for one scale the axis says nothing."""
    del b
    if rank_of(argument(node, 1)) not in {0, None}:
        raise CannotRewrite("per-channel scales came with opset 13")
    return node.attributes.pop("axis", None) is not None


_REDUCTIONS: Final = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
)  # fmt: skip

RULES: Final[Mapping[str, tuple[tuple[int, Rule], ...]]] = {
    **dict.fromkeys(_REDUCTIONS, ((18, _reduce),)),
    "ReduceSum": ((13, _reduce),),
    "Squeeze": ((13, _squeeze),),
    "Unsqueeze": ((13, _squeeze),),
    "Split": ((18, _split_18), (13, _split_13)),
    "Reshape": ((14, _reshape_14),),
    "Shape": ((15, shape_part),),
    "BatchNormalization": ((14, _batch_norm_14),),
    "LSTM": ((14, batch_first),),
    "GRU": ((14, batch_first),),
    "RNN": ((14, batch_first),),
    "Pad": ((19, _pad_19), (18, _pad_18)),
    "Resize": ((18, resize_18), (13, resize_13)),
    "AveragePool": ((19, _ones_dropped("dilations")),),
    "LpPool": ((18, _ones_dropped("dilations")),),
    "GridSample": ((20, _grid_sample_20),),
    "ScatterElements": (
        (18, _only("reduction", "none", "none", "add", "mul")),
        (16, _drop("reduction", "none", "none")),
    ),
    "ScatterND": ((18, _only("reduction", "none", "none", "add", "mul")), (16, _drop("reduction", "none", "none"))),
    "RoiAlign": ((16, _drop("coordinate_transformation_mode", "half_pixel", "output_half_pixel")),),
    "Softmax": ((13, _softmax_13),),
    "LogSoftmax": ((13, _softmax_13),),
    "Hardmax": ((13, _softmax_13),),
    "GreaterOrEqual": ((12, or_equal),),
    "LessOrEqual": ((12, or_equal),),
    "Dropout": ((12, _dropout_12),),
    "Pow": ((12, _pow_12),),
    "Constant": ((12, _constant_12),),
    "QuantizeLinear": ((13, _quantize_13),),
    "DequantizeLinear": ((13, _quantize_13),),
}
