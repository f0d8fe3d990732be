"""Known defects and surprises of the toolchains, each with a name, the versions it was seen in, and where it is dealt with.

Code that works around one names it, so that it can be found, tested again with a newer version, and taken out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from orchestrator.core.errors import InternalError


@dataclass(frozen=True, slots=True)
class Quirk:
    """One defect.

    Attributes:
        toolchain: Key of the toolchain.
        versions: Those it was seen in, or what the source speaks of.
        effect: What happens when nothing is done.
        remedy: What is done about it.
        rewrite: The rewrite that deals with it; empty where something else does.
        source: Where it is known from.
    """

    name: str
    toolchain: str
    versions: str
    effect: str
    remedy: str
    source: str
    rewrite: str = ""


_MEASURED: Final = "measured with the converter's wheel from PyPI on an x86 CPU"

_ALL: Final = (
    Quirk(
        "mindspore-lite-2.0.0-maxpool-dilations", "mindspore-lite", "2.0.0",
        "a MaxPool that states dilations is refused, even when all are 1, as torch always writes them",
        "dilations that are all 1 are taken off", _MEASURED, "strip_dilations",
    ),
    Quirk(
        "mindspore-lite-layernorm-epsilon", "mindspore-lite", "2.0.0",
        "the epsilon of LayerNormalization is lost: wrong numbers without a word where the input is small",
        "LayerNormalization is written out with ReduceMean", _MEASURED, "decompose_layer_normalization",
    ),
    Quirk(
        "mindspore-lite-2.0.0-hard-swish", "mindspore-lite", "2.0.0",
        "HardSwish has no parser", "x * HardSigmoid(x) in its place", _MEASURED, "decompose_hard_swish",
    ),
    Quirk(
        "mindspore-lite-2.0.0-instance-norm-rank", "mindspore-lite", "2.0.0",
        "InstanceNormalization of a tensor that is no image (as GroupNorm is exported) takes the wrong axis for the "
        "channels and is refused", "it is written out with ReduceMean", _MEASURED, "decompose_instance_normalization",
    ),
    Quirk(
        "mindspore-lite-2.0.0-shape-part", "mindspore-lite", "2.0.0",
        "Shape with start or end gives all dimensions: what is computed from it has the wrong length",
        "the whole shape is sliced", _MEASURED, "slice_shape",
    ),
    Quirk(
        "mindspore-lite-2.0.0-lstm-short-form", "mindspore-lite", "2.0.0",
        "an LSTM that leaves out an output or its initial states converts, and then cannot be built",
        "all three outputs are named and the states are stated", _MEASURED, "complete_lstm",
    ),
    Quirk(
        "mindspore-lite-2.0.0-joining-inputs", "mindspore-lite", "2.0.0",
        "an image of fixed shape that is an input of the graph and joins (Add, Mul, Concat and their like) what was computed "
        "of a convolution: its transpose optimiser fails where the result goes on to another",
        "the input is read through a Reshape to its own shape", _MEASURED, "reshape_joining_inputs",
    ),
    Quirk(
        "mindspore-lite-2.0.0-defaults", "mindspore-lite", "2.0.0",
        "what a graph leaves to ONNX's defaults (alpha of Elu and LeakyRelu, the lower bound of Clip, strides, the "
        "coordinates of Resize) is taken otherwise: wrong numbers without a word, or a graph that cannot be built",
        "the defaults are written out", _MEASURED, "write_out_defaults",
    ),
    Quirk(
        "mindspore-lite-input-shape-option-crashes", "mindspore-lite", "2.0.0",
        "the option input_shape ends the converter by a signal on transformers and LSTMs",
        "shapes are fixed in the graph, and the option is not used", _MEASURED, "fix_shapes",
    ),
    Quirk(
        "mindspore-lite-2.0.0-signals", "mindspore-lite", "2.0.0",
        "about one conversion in eight ends by a signal", "it runs in a child process, and once more after a signal",
        _MEASURED,
    ),
    Quirk(
        "mindspore-lite-int64-inputs", "mindspore-lite", "2.0.0",
        "int64 inputs become int32 tensors, and int64 data is refused",
        "the adapter casts; narrow_int64 makes the graph say so", _MEASURED, "narrow_int64",
    ),
    Quirk(
        "atc-opset-19", "atc", "all up to CANN 9.1",
        "parsers are registered for opsets 8 to 18: not one node of a newer model is known",
        "the graph is brought down to 18", "github:hicann/ge parser/parser/onnx/onnx_parser.cc", "lower_opset",
    ),
    Quirk(
        "atc-reduce-norm-18", "atc", "all up to CANN 9.1",
        "ReduceL1 and ReduceL2 are registered up to opset 17 only", "they are written out with ReduceSum",
        "github:hicann/ops-math ONNX plugin registrations", "decompose_reduce_norms",
    ),
    Quirk(
        "atc-group-normalization", "atc", "all up to CANN 9.1",
        "GroupNormalization has no parser at any opset", "it is written out with ReduceMean",
        "github:hicann/ops-nn ONNX plugin registrations", "decompose_group_normalization",
    ),
    Quirk(
        "atc-duplicate-names", "atc", "all",
        "two nodes of one name are refused (E13009), and keep lists cannot tell them apart",
        "every node gets a name of its own", "github:hicann/ge parser/common/pre_checker.cc", "name_nodes",
    ),
    Quirk(
        "atc-large-kernels", "atc", "all",
        "a convolution kernel above 255 is not supported; a pooling window above 256 goes to the slow AI CPU",
        "they are split", "CANN operator list, constraints of Conv and MaxPool", "split_large_kernel",
    ),
    Quirk(
        "atc-no-qdq", "atc", "all",
        "QuantizeLinear and its like have no parser: quantised graphs of ONNX do not convert",
        "reported, with the vendor's way to quantise", "github:hicann ONNX plugin registrations",
    ),
    Quirk(
        "atc-weight-clip", "atc", "all",
        "with fp16 modes, weights beyond 65504 are clipped without a word (is_weight_clip is on)",
        "the forecast sees them as saturated", "CANN atc manual, --is_weight_clip",
    ),
    Quirk(
        "ort-cann-silent-cpu", "cann-ep", "onnxruntime-cann up to 1.24.4",
        "without CANN's libraries, or for operators it lacks, it computes on the CPU and says nothing",
        "the session is opened with CPU fallback off and the provider is read back", "measured with the wheel from PyPI",
    ),
    Quirk(
        "ort-cann-layer-normalization", "cann-ep", "onnxruntime-cann up to 1.24.4",
        "LayerNormalization is not in the provider's list and falls to the CPU",
        "the graph is brought to opset 16, where it is written out", "onnxruntime-cann 1.24.4, list of graph operators",
        "decompose_layer_normalization",
    ),
    Quirk(
        "ort-cann-constant-nodes", "cann-ep", "onnxruntime-cann up to 1.24.4",
        "a node whose inputs are all constant is rejected and splits the graph",
        "such nodes are computed beforehand", "github:microsoft/onnxruntime core/providers/cann", "fold_constants",
    ),
)  # fmt: skip

JOINS: Final = frozenset({"Add", "Concat", "Div", "Max", "Mul", "Sub", "Sum"})
"""Operators of the quirk mindspore-lite-2.0.0-joining-inputs; Min and Where were measured and are free of it."""

QUIRKS: Final[Mapping[str, Quirk]] = {quirk.name: quirk for quirk in _ALL}


def quirk(name: str) -> Quirk:
    """Return a quirk by its name.

    Raises:
        InternalError: There is none; code names one that was taken out.
    """
    if name not in QUIRKS:
        raise InternalError(f"there is no quirk {name!r}", hint="a quirk was taken out and its workaround was not")
    return QUIRKS[name]
