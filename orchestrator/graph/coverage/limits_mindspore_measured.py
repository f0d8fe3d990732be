"""Attributes that MindSpore Lite 2.0.0 gets wrong: each form was converted, run on its CPU runtime and compared.

Two kinds: forms that convert without a word and answer wrong numbers, and forms that the runtime refuses to build. Both
are of the converter with its CPU runtime; on a SoC another runtime builds the graph, and what it does is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from orchestrator.graph.coverage.judge import Question
from orchestrator.graph.coverage.nodes import Node
from orchestrator.graph.coverage.verdicts import Finding


@dataclass(frozen=True, slots=True)
class Measured:
    """One form: whether a node has it, what becomes of it, what to do, and the rewrite that does it."""

    has: Callable[[Node], bool]
    effect: Literal["wrong numbers", "refused", "hangs"]
    form: str
    fix: str
    rewrite: str | None = None


_NO_TYPES: Final = frozenset({"uint16", "uint32", "uint64", "bfloat16", "string", "complex64", "complex128"})
_NO_TYPE_FAMILIES: Final = ("float8", "float4", "int4", "uint4", "int2", "uint2")


def measured(node: Node, question: Question) -> Iterator[Finding]:
    """Yield what was measured of nodes of this form; nodes of constants alone are computed beforehand, but for Shape."""
    if node.domain or (node.folded and node.op_type != "Shape"):
        return
    verdict = "unknown" if question.family else "blocked"
    for item in _FORMS.get(node.op_type, ()):
        if item.has(node):
            text = {
                "wrong numbers": "is converted without a word and answers wrong numbers",
                "refused": "is refused",
                "hangs": "never ends",
            }[item.effect]
            yield Finding(verdict, f"{node.op_type} {item.form} {text} (CPU runtime of 2.0.0)", item.fix, item.rewrite)
    types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None and _no_type(value.dtype)}
    if types:
        yield Finding("blocked", f"the converter does not read {', '.join(sorted(types))}", "use float32 or int32")


def _no_type(dtype: str) -> bool:
    return dtype in _NO_TYPES or dtype.startswith(_NO_TYPE_FAMILIES)


def _lacks(*names: str) -> Callable[[Node], bool]:
    return lambda node: any(name not in node.attributes for name in names)


def _set(name: str) -> Callable[[Node], bool]:
    return lambda node: node.integer(name) != 0


def _rank_is_not(*ranks: int) -> Callable[[Node], bool]:
    return lambda node: node.rank() is not None and node.rank() not in ranks


def _number(node: Node, name: str, default: float) -> float:
    return float(node.attributes.get(name, default))


def _hard_sigmoid(node: Node) -> bool:
    return abs(_number(node, "alpha", 0.2) - 1 / 6) > 1e-6 or _number(node, "beta", 0.5) != 0.5


def _resize_nearest(node: Node) -> bool:
    return node.text("mode", "nearest") == "nearest" and (
        node.text("coordinate_transformation_mode", "half_pixel"), node.text("nearest_mode", "round_prefer_floor")
    ) != ("asymmetric", "floor")  # fmt: skip


def _resize_linear(node: Node) -> bool:
    return node.text("mode") == "linear" and "coordinate_transformation_mode" not in node.attributes


def _resize_refinement(node: Node) -> bool:
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    return bool(node.integer("antialias")) or "axes" in node.attributes or policy != "stretch"


def _reduces_before_last(node: Node) -> bool:
    """Whether any axis but the last is reduced; without axes all are."""
    array = node.value(1).array
    axes = [int(axis) for axis in array.reshape(-1)] if array is not None else node.ints("axes")
    rank = node.rank()
    return not axes or any(axis != -1 and (rank is None or axis % rank != rank - 1) for axis in axes)


def _negative_pads(node: Node) -> bool:
    array = node.value(1).array
    return array is not None and bool((array < 0).any())


def _matrix_bias(node: Node) -> bool:
    shape = node.value(2).shape if node.has(2) else None
    return shape is not None and len(shape) == 2 and shape[0] != 1


def _vector_exponent(node: Node) -> bool:
    shape = node.value(1).shape
    return shape is None or any(dim != 1 for dim in shape)


def _softmax_flattens(node: Node) -> bool:
    rank = node.rank()
    axis = node.integer("axis", 1)
    return node.opset < 13 and (rank is None or axis % rank != rank - 1)


def _no_axes(node: Node) -> bool:
    array = node.value(1).array
    return node.has(1) and array is not None and array.size == 0


def _lstm(node: Node) -> bool:
    states = all(node.has(index) and node.value(index).constant for index in (5, 6))
    named = len(node.outputs) == 3 and all(value is not None for value in node.outputs)
    shape = node.value(0).shape
    fixed = shape is not None and all(isinstance(dim, int) for dim in shape)
    return not (states and named and fixed)


def _several_classes(node: Node) -> bool:
    shape = node.value(1).shape
    return shape is None or shape[0] != 1 or shape[1] != 1


_POOL: Final = (
    Measured(_rank_is_not(4), "refused", "of other than 4 dimensions", "give it a dimension of 1 more"),
    Measured(
        lambda node: node.text("auto_pad") == "SAME_LOWER", "refused", "with auto_pad SAME_LOWER", "write the pads out"
    ),
)
_DEFAULTS: Final = ("the rewrite write_out_defaults writes them out", "write_out_defaults")
_REDUCTION: Final = (Measured(_no_axes, "hangs", "with an empty list of axes", "leave the axes out"),)
_PLANES: Final = (
    Measured(_rank_is_not(4), "refused", "of other than 4 dimensions", "use ReduceMean or -ReduceMin(-x)"),
)
_UNBUILT: Final = (Measured(lambda _: True, "refused", "at all", "compute it from other operators"),)

_FORMS: Final[Mapping[str, tuple[Measured, ...]]] = {
    "ArgMax": (
        Measured(_set("select_last_index"), "wrong numbers", "with select_last_index", "flip the axis first"),
        Measured(_lacks("keepdims"), "wrong numbers", "without keepdims written out", *_DEFAULTS),
    ),
    "Asin": _UNBUILT,
    "Atan": _UNBUILT,
    "AveragePool": (
        *_POOL,
        Measured(
            lambda node: bool(node.integer("count_include_pad")) and any(node.ints("pads")),
            "wrong numbers", "that counts its padding", "pad first, then pool without padding",
        ),
    ),
    "Clip": (
        Measured(
            lambda node: node.has(2) and not node.has(1), "wrong numbers", "with a maximum and no minimum",
            *_DEFAULTS,
        ),
        Measured(
            lambda node: any(node.has(place) and not node.value(place).constant for place in (1, 2)),
            "wrong numbers", "with computed bounds", "use Min and Max",
        ),
    ),
    "Conv": (
        Measured(_rank_is_not(3, 4), "refused", "of 5 dimensions", "use 2-D convolutions"),
        Measured(lambda node: node.text("auto_pad") == "SAME_LOWER", "wrong numbers", "with auto_pad SAME_LOWER", "write the pads out"),
    ),
    "ConvTranspose": (
        Measured(_lacks("strides", "dilations"), "refused", "without strides and dilations written out",
                 *_DEFAULTS),
        Measured(lambda node: "output_shape" in node.attributes, "wrong numbers", "with output_shape",
                 "give pads and output_padding"),
    ),
    "CumSum": (
        Measured(lambda node: bool(node.integer("exclusive") or node.integer("reverse")), "wrong numbers",
                 "with exclusive or reverse", "flip and shift around a plain one"),
    ),
    "Einsum": (Measured(lambda node: len(node.inputs) != 2, "refused", "of other than two operands",
                        "write it with Transpose, ReduceSum and MatMul"),),
    "Elu": (Measured(_lacks("alpha"), "wrong numbers", "without alpha written out", *_DEFAULTS),),
    "Flatten": (Measured(lambda node: node.integer("axis", 1) < 0, "refused", "with a negative axis",
                         "count the axis from the front"),),
    "GatherND": (Measured(_set("batch_dims"), "wrong numbers", "with batch_dims", "put the batch into the indices"),),
    "Gemm": (
        Measured(lambda node: _number(node, "alpha", 1) != 1 or _number(node, "beta", 1) != 1, "refused",
                 "with alpha or beta", "put them into the weights"),
        Measured(_matrix_bias, "refused", "with a matrix to add", "use MatMul and Add"),
    ),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _PLANES),
    "HardSigmoid": (Measured(_hard_sigmoid, "wrong numbers", "of other than alpha 1/6 and beta 1/2",
                             "write it as Clip(alpha * x + beta, 0, 1)"),),
    "LRN": (Measured(_lacks("alpha", "beta", "bias"), "wrong numbers", "without alpha, beta and bias written out",
                     *_DEFAULTS),),
    "LSTM": (Measured(_lstm, "refused", "without constant initial states, all three outputs and a fixed batch",
                      "give initial_h and initial_c, use Y, Y_h and Y_c, and fix the shapes"),),
    "LeakyRelu": (Measured(_lacks("alpha"), "wrong numbers", "without alpha written out",
                           *_DEFAULTS),),
    "LpNormalization": _UNBUILT,
    "MatMul": (Measured(lambda node: 1 in (node.rank(0), node.rank(1)), "wrong numbers", "with a vector",
                        "make it a matrix of one row or column"),),
    **dict.fromkeys(("Max", "Min", "Sum"), (Measured(
        lambda node: len(node.inputs) != 2, "refused", "of other than two operands", "take them two by two"),)),
    "MaxPool": (*_POOL, Measured(lambda node: len(node.outputs) > 1, "refused", "with indices", "leave them out")),
    "Mod": (Measured(lambda node: not node.integer("fmod"), "wrong numbers", "of mixed signs",
                     "use fmod=1, or x - floor(x / y) * y"),),
    "NonMaxSuppression": (Measured(_several_classes, "wrong numbers", "of several classes or batches",
                                   "do it after the model"),),
    "OneHot": (Measured(_lacks("axis"), "wrong numbers", "without its axis written out", *_DEFAULTS),),
    "PRelu": (Measured(lambda node: not node.value(1).constant, "refused", "with a slope that is computed",
                       "use Where(x < 0, slope * x, x)"),),
    "Pad": (
        Measured(lambda node: node.has(3), "refused", "with axes", "give pads for every axis"),
        Measured(_negative_pads, "refused", "with negative pads", "cut with Slice"),
    ),
    "Pow": (
        Measured(lambda node: "int" in node.value(1).dtype, "wrong numbers", "with an integer exponent",
                 "use a float exponent"),
        Measured(_vector_exponent, "refused", "with an exponent that is no single number", "multiply, or use Exp and Log"),
    ),
    **dict.fromkeys(("ReduceL2", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare"), _REDUCTION),
    "ReduceMax": (
        *_REDUCTION,
        Measured(_reduces_before_last, "wrong numbers", "of negative numbers along any axis but the last",
                 "use -ReduceMin(-x)"),
    ),
    "ReduceSum": (
        *_REDUCTION,
        Measured(lambda node: bool(node.integer("noop_with_empty_axes")) and not node.has(1), "wrong numbers",
                 "with noop_with_empty_axes and no axes", "leave it out: it does nothing"),
    ),
    "Resize": (
        Measured(_rank_is_not(4), "refused", "of other than 4 dimensions", "give it a dimension of 1 more"),
        Measured(_resize_nearest, "wrong numbers", "nearest, of other than asymmetric and floor",
                 "export with torch's nearest, or use linear"),
        Measured(_resize_linear, "wrong numbers", "linear, without its coordinate mode written out",
                 *_DEFAULTS),
        Measured(lambda node: node.text("mode") == "cubic", "wrong numbers", "cubic", "use linear"),
        Measured(_resize_refinement, "wrong numbers", "with antialias, axes or an aspect ratio policy",
                 "give sizes of all axes"),
    ),
    "ScatterElements": _UNBUILT,
    "ScatterND": (Measured(lambda node: node.text("reduction", "none") != "none", "wrong numbers", "with a reduction",
                           "gather, compute, then scatter"),),
    "Shape": (Measured(lambda node: node.integer("start") != 0 or "end" in node.attributes, "wrong numbers",
                       "with start or end", "the rewrite slice_shape cuts it with Slice", "slice_shape"),),
    **dict.fromkeys(("LogSoftmax", "Softmax"), (Measured(
        _softmax_flattens, "wrong numbers", "before opset 13 on an axis that is not the last",
        "export at opset 13 or newer"),)),
    "Split": (Measured(lambda node: len(node.outputs) == 1, "refused", "into one part", "leave it out"),),
    "Tan": _UNBUILT,
    "TopK": (Measured(lambda node: node.integer("largest", 1) == 0, "wrong numbers", "of the smallest",
                      "negate around it"),),
    "Transpose": (Measured(_lacks("perm"), "wrong numbers", "without perm written out", *_DEFAULTS),),
}  # fmt: skip
"""Operator of `ai.onnx` -> forms that were measured to fail; what is not here was right or was not measured."""
