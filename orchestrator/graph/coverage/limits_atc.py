"""Known limits of ATC's operators by attribute and shape: one small function per operator, each with its source.

Sources: [list] the vendor's list of supported ONNX operators (CANN 8.0.0 to 9.0.0), validated for the inference series;
[plugin] github:hicann/ops-nn, ops-cv, ops-math, the ONNX plugins of 2026-08. Where the two contradict each other the
verdict is `unknown`, or `ok` where converted models are known (grouped Conv, Gemm with C).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from orchestrator.graph.coverage.judge import Question
from orchestrator.graph.coverage.nodes import Node
from orchestrator.graph.coverage.verdicts import Finding

Limit = Callable[[Node, Question], Iterator[Finding]]

_LARGEST_KERNEL: Final = 255
_LARGEST_STRIDE: Final = 63
_WIDEST: Final = 4096
_LARGEST_POOL: Final = 256
_MOST_BOXES: Final = 700


def zero_dimension(node: Node, _: Question) -> Iterator[Finding]:
    """No dimension may be 0 [general restrictions of ATC]."""
    for value in (*node.inputs, *node.outputs):
        shape = value.shape if value is not None and not (value.constant or node.folded) else None
        if shape is not None and 0 in shape:
            yield Finding("blocked", f"a tensor has the shape {list(shape)}: ATC takes no dimension of 0", "drop it")
            return


def repeated_name(node: Node, _: Question) -> Iterator[Finding]:
    """Node names must be unique [hicann/ge, pre_checker.cc: E13009]."""
    if node.repeated:
        yield Finding(
            "blocked",
            f"another node is called {node.name!r} too",
            "the rewrite name_nodes gives it a name of its own",
            "name_nodes",
        )


def conv(node: Node, _: Question) -> Iterator[Finding]:
    """Kernel, dilation and padding up to 255, stride up to 63, width up to 4096 [list]; 1-D to 3-D [plugin].

    The list also wants one group; the plugin passes groups on, and grouped models are converted every day.
    """
    rank = node.rank()
    if rank is not None and rank not in {3, 4, 5}:
        yield Finding("blocked", f"Conv of rank {rank}: 3, 4 or 5 are parsed", "reshape around it")
    shape = node.value(1).shape
    kernel = [dim for dim in (shape or ())[2:] if isinstance(dim, int)] or node.ints("kernel_shape")
    if max(kernel, default=0) > _LARGEST_KERNEL:
        yield Finding(
            "blocked",
            f"Conv kernel {kernel}: at most {_LARGEST_KERNEL} per axis",
            "the rewrite split_large_kernel splits it",
            "split_large_kernel",
        )
    yield from _at_most(node, "strides", _LARGEST_STRIDE)
    yield from _at_most(node, "dilations", _LARGEST_KERNEL)
    yield from _at_most(node, "pads", _LARGEST_KERNEL)
    yield from _width(node)
    if rank == 5 and node.text("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        yield Finding("blocked", "3-D Conv with auto_pad SAME", "pad with numbers")


def conv_transpose(node: Node, _: Question) -> Iterator[Finding]:
    """Older lists forbid dilation and auto_pad SAME; newer ones do not speak of it."""
    if any(item != 1 for item in node.ints("dilations")):
        yield Finding(
            "unknown", f"ConvTranspose with dilations {node.ints('dilations')}: older lists forbid it, newer are silent"
        )
    if node.text("auto_pad", "NOTSET").startswith("SAME"):
        yield Finding(
            "unknown", "ConvTranspose with auto_pad SAME: older lists forbid it, newer are silent", "pad with numbers"
        )
    if "kernel_shape" not in node.attributes:
        yield Finding(
            "blocked", "ConvTranspose without kernel_shape: the parser needs it", "export it with kernel_shape"
        )


def max_pool(node: Node, _: Question) -> Iterator[Finding]:
    """No indices, row-major only [plugin]; no 2-D dilation, big windows and strides on the AI CPU [list]."""
    if len(node.outputs) > 1 and node.outputs[1] is not None:
        yield Finding("blocked", "MaxPool with its Indices output: not parsed", "do without the indices")
    if node.integer("storage_order"):
        yield Finding("blocked", "MaxPool with storage_order 1: not parsed", "use storage_order 0")
    kernel, dilations = node.ints("kernel_shape"), node.ints("dilations")
    if len(kernel) not in {1, 2, 3}:
        yield Finding("blocked", f"MaxPool over {len(kernel)} axes: 1 to 3 are parsed")
    if len(kernel) == 2 and any(item != 1 for item in dilations):
        yield Finding(
            "blocked", f"MaxPool with dilations {dilations}: none are possible in 2-D", "pool without dilation"
        )
    if node.text("auto_pad", "NOTSET") == "VALID" and node.integer("ceil_mode"):
        yield Finding("blocked", "MaxPool with auto_pad VALID and ceil_mode 1", "set ceil_mode 0, or pad with numbers")
    area = kernel[0] * kernel[1] if len(kernel) == 2 else 0
    if (
        max(node.ints("strides"), default=1) > _LARGEST_STRIDE
        or max(kernel, default=1) > _LARGEST_KERNEL
        or area > _LARGEST_POOL
    ):
        yield Finding(
            "slow",
            f"MaxPool window {kernel}, strides {node.ints('strides')} run on the AI CPU "
            f"(fast: window at most {_LARGEST_POOL} elements and {_LARGEST_KERNEL} per axis, stride {_LARGEST_STRIDE})",
            "the rewrite split_large_kernel splits it; over the whole plane use GlobalMaxPool",
            "split_large_kernel",
        )
    yield from _width(node)


def average_pool(node: Node, _: Question) -> Iterator[Finding]:
    """1-D to 3-D [plugin]; dilation came with opset 19, which is not parsed."""
    if len(node.ints("kernel_shape")) not in {1, 2, 3}:
        yield Finding("blocked", f"AveragePool over {len(node.ints('kernel_shape'))} axes: 1 to 3 are parsed")


def resize(node: Node, _: Question) -> Iterator[Finding]:
    """Nearest and linear with constant scales or sizes; 5-D only linear with two coordinate modes [list].

    The plugin never looks at nearest_mode, while the list names round_prefer_ceil alone.
    """
    mode, coordinates = node.text("mode", "nearest"), node.text("coordinate_transformation_mode", "half_pixel")
    if mode not in {"nearest", "linear"}:
        yield Finding("blocked", f"Resize with mode {mode!r}: nearest and linear are possible", "interpolate linearly")
    sizes = [node.value(index) for index in (2, 3) if node.has(index)] if node.opset > 10 else [node.value(1)]
    if any(not value.constant for value in sizes):
        yield Finding(
            "blocked",
            "Resize with scales or sizes that are computed: they must be constants",
            "fix the input shapes; the rewrite fold_constants computes them then",
            "fold_constants",
        )
    if mode == "nearest" and node.opset > 10 and node.text("nearest_mode", "round_prefer_floor") != "round_prefer_ceil":
        yield Finding(
            "unknown",
            f"Resize with nearest_mode {node.text('nearest_mode', 'round_prefer_floor')!r}: the parser ignores it and "
            "the vendor's list names round_prefer_ceil alone; pixels may shift by one",
            "look at the parity of its output, or interpolate linearly",
        )
    if node.rank() == 5 and not (mode == "linear" and coordinates in {"align_corners", "pytorch_half_pixel"}):
        yield Finding(
            "blocked", f"3-D Resize with {mode}, {coordinates}: only linear with align_corners or pytorch_half_pixel"
        )


def non_max_suppression(node: Node, _: Question) -> Iterator[Finding]:
    """The output has a fixed size and is padded with -1; many boxes exhaust the hardware [list]."""
    yield Finding(
        "unknown",
        "NonMaxSuppression answers a fixed [boxes x batch x classes, 3] padded with -1, not ONNX's variable length",
        "let what follows skip rows of -1, or leave it to the client",
    )
    boxes = node.value(2).array
    if boxes is not None and boxes.size and int(boxes.reshape(-1)[0]) > _MOST_BOXES:
        yield Finding(
            "unknown", f"NonMaxSuppression of {int(boxes.reshape(-1)[0])} boxes: more than {_MOST_BOXES} may not fit"
        )


def layer_normalization(node: Node, question: Question) -> Iterator[Finding]:
    """fp16 tensors only [list]; the kernel itself decides."""
    if question.strict and node.value(0).dtype == "float32":
        yield Finding(
            "unknown",
            f"LayerNormalization of float32 under precision {question.precision}: the vendor's list has float16 alone",
            "the rewrite decompose_layer_normalization writes it out",
            "decompose_layer_normalization",
        )


def lstm(node: Node, _: Question) -> Iterator[Finding]:
    """No `layout` [list]; the parser does not read it, so that batch-first would be read time-first."""
    if node.integer("layout"):
        yield Finding(
            "blocked", f"{node.op_type} with layout 1: the parser ignores it", "export it time-first (layout 0)"
        )


def scatter_nd(node: Node, _: Question) -> Iterator[Finding]:
    """`mul` is refused [plugin]."""
    if node.text("reduction", "none") == "mul":
        yield Finding("blocked", "ScatterND with reduction 'mul': not parsed", "multiply outside of it")


def cast(node: Node, question: Question) -> Iterator[Finding]:
    """What the AI Core does not write, the AI CPU may (kernel table)."""
    target = node.outputs[0].dtype if node.outputs and node.outputs[0] else ""
    kernel = question.kernels.kernel("Cast", question.family) if question.family else None
    if not target or node.folded or kernel is None or kernel.takes(target) is not False:
        return
    slow = any(row is None or target in row for row in question.kernels.ai_cpu("Cast") or ())
    where = "runs on the AI CPU, which is slow" if slow else "has no kernel, nor one on the AI CPU"
    double = target == "float64"
    yield Finding(
        "slow" if slow else "blocked",
        f"Cast to {target} {where}",
        "the rewrite narrow_float64 makes it float32" if double else "cast to a type of the AI Core",
        "narrow_float64" if double else None,
    )


def upsample(node: Node, _: Question) -> Iterator[Finding]:
    """Nearest and linear [plugin]."""
    if node.text("mode", "nearest") not in {"nearest", "linear"}:
        yield Finding("blocked", f"Upsample with mode {node.text('mode')!r}: nearest and linear are parsed")


ATC_LIMITS: Final[Mapping[str, Limit]] = {
    "AveragePool": average_pool,
    "Cast": cast,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "GRU": lstm,
    "LSTM": lstm,
    "LayerNormalization": layer_normalization,
    "MaxPool": max_pool,
    "NonMaxSuppression": non_max_suppression,
    "Resize": resize,
    "ScatterND": scatter_nd,
    "Upsample": upsample,
}
"""Operator of `ai.onnx` -> what is known of it."""

ATC_EVERYWHERE: Final[tuple[Limit, ...]] = (zero_dimension, repeated_name)


def _at_most(node: Node, name: str, largest: int) -> Iterator[Finding]:
    if max(node.ints(name), default=0) > largest:
        yield Finding(
            "blocked", f"{node.op_type} with {name} {node.ints(name)}: at most {largest}", "split it in the model"
        )


def _width(node: Node) -> Iterator[Finding]:
    shape = node.value(0).shape
    width = shape[-1] if shape and len(shape) == 4 else 0
    if isinstance(width, int) and width > _WIDEST:
        yield Finding("blocked", f"{node.op_type} over a width of {width}: at most {_WIDEST}", "tile the input")
