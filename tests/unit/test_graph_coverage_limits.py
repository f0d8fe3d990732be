"""Each known attribute limit, in and out of bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.ascend.kernels import shipped
from orchestrator.graph.coverage.judge import Question
from orchestrator.graph.coverage.limits_atc import ATC_EVERYWHERE, ATC_LIMITS
from orchestrator.graph.coverage.limits_mindspore import MINDSPORE_LIMITS
from orchestrator.graph.coverage.limits_mindspore_measured import measured
from orchestrator.graph.coverage.nodes import Node, Value

ATC = Question("atc", "ascend310p", "fp16", shipped(), None)
STRICT = Question("atc", "ascend910b", "origin", shipped(), None)
LITE = Question("mindspore-lite", "", "fp16", shipped(), None)


def tensor(*shape: int | str, dtype: str = "float32", constant: bool = False, array: Any = None) -> Value:
    return Value(dtype, shape, constant, array)


IMAGE = tensor("N", 3, 32, 32)


def node(
    op: str, *inputs: Value | None, outputs: tuple[Value | None, ...] = (), opset: int = 18, **attributes: Any
) -> Node:
    return Node("it", op, "", "", "", opset, attributes, inputs, outputs or (tensor(1),), folded=False)


def verdicts(made: Node, question: Question = ATC) -> list[str]:
    table = MINDSPORE_LIMITS if question is LITE else ATC_LIMITS
    return [finding.verdict for finding in table[made.op_type](made, question)]


def conv(weight: tuple[int, ...] = (8, 3, 3, 3), data: Value = IMAGE, **attributes: Any) -> Node:
    return node("Conv", data, tensor(*weight, constant=True), **attributes)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (conv(strides=[2, 2], dilations=[2, 2], pads=[1, 1, 1, 1], group=3), []),
        (conv((8, 3, 255, 255)), []),
        (conv((8, 3, 256, 3)), ["blocked"]),
        (conv(strides=[63, 63]), []),
        (conv(strides=[64, 1]), ["blocked"]),
        (conv(dilations=[256, 1]), ["blocked"]),
        (conv(pads=[256, 0, 0, 0]), ["blocked"]),
        (conv(data=tensor(1, 3, 32, 4096)), []),
        (conv(data=tensor(1, 3, 32, 4097)), ["blocked"]),
        (conv((8, 3, 3), tensor(1, 3, 9999)), []),
        (conv((8, 3, 3, 3, 3), tensor(1, 3, 8, 8, 8), auto_pad=b"SAME_UPPER"), ["blocked"]),
        (conv((8, 3, 3, 3, 3), tensor(1, 3, 8, 8, 8), auto_pad=b"VALID"), []),
        (conv((8, 3, 3, 3, 3, 3), tensor(1, 3, 8, 8, 8, 8)), ["blocked"]),
        (conv(data=Value()), []),
    ],
)
def test_conv(made: Node, expected: list[str]) -> None:
    assert verdicts(made) == expected


def pool(kernel: list[int], **attributes: Any) -> Node:
    outputs = attributes.pop("outputs", ())
    return node("MaxPool", IMAGE, outputs=outputs, kernel_shape=kernel, **attributes)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (pool([2, 2], strides=[2, 2], dilations=[1, 1]), []),
        (pool([16, 16]), []),
        (pool([17, 16]), ["slow"]),
        (pool([256]), ["slow"]),
        (pool([2, 2], strides=[64, 64]), ["slow"]),
        (pool([2, 2], dilations=[2, 2]), ["blocked"]),
        (pool([2, 2, 2], dilations=[2, 2, 2]), []),
        (pool([2, 2], storage_order=1), ["blocked"]),
        (pool([2, 2], outputs=(tensor(1), tensor(1))), ["blocked"]),
        (pool([2, 2], outputs=(tensor(1), None)), []),
        (pool([2, 2], auto_pad=b"VALID", ceil_mode=1), ["blocked"]),
        (pool([2, 2, 2, 2]), ["blocked"]),
    ],
)
def test_max_pool(made: Node, expected: list[str]) -> None:
    assert verdicts(made) == expected


def resize(data: Value = IMAGE, sizes: Value | None = None, **attributes: Any) -> Node:
    scales = tensor(4, constant=True)
    return node("Resize", data, None, *((None, sizes) if sizes else (scales,)), **attributes)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (resize(mode=b"linear"), []),
        (resize(mode=b"linear", sizes=tensor(4, constant=True)), []),
        (resize(mode=b"linear", sizes=tensor(4)), ["blocked"]),
        (resize(mode=b"cubic"), ["blocked"]),
        (resize(mode=b"nearest", nearest_mode=b"round_prefer_ceil"), []),
        (resize(mode=b"nearest", nearest_mode=b"floor"), ["unknown"]),
        (resize(mode=b"nearest"), ["unknown"]),
        (resize(tensor(1, 3, 4, 4, 4), mode=b"linear"), ["blocked"]),
        (resize(tensor(1, 3, 4, 4, 4), mode=b"linear", coordinate_transformation_mode=b"align_corners"), []),
        (node("Resize", IMAGE, tensor(4), opset=10, mode=b"linear"), ["blocked"]),
    ],
)
def test_resize(made: Node, expected: list[str]) -> None:
    assert verdicts(made) == expected


def test_the_rewrites_of_limits() -> None:
    assert next(ATC_LIMITS["Conv"](conv((8, 3, 300, 3)), ATC)).rewrite == "split_large_kernel"
    assert next(ATC_LIMITS["Resize"](resize(mode=b"linear", sizes=tensor(4)), ATC)).rewrite == "fold_constants"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (node("ConvTranspose", IMAGE, kernel_shape=[2, 2]), []),
        (node("ConvTranspose", IMAGE), ["blocked"]),
        (node("ConvTranspose", IMAGE, kernel_shape=[2, 2], dilations=[2, 2]), ["unknown"]),
        (node("ConvTranspose", IMAGE, kernel_shape=[2, 2], auto_pad=b"SAME_UPPER"), ["unknown"]),
        (node("AveragePool", IMAGE, kernel_shape=[2, 2]), []),
        (node("AveragePool", IMAGE, kernel_shape=[2, 2, 2, 2]), ["blocked"]),
        (node("LSTM", tensor(7, 1, 5)), []),
        (node("LSTM", tensor(1, 7, 5), layout=1), ["blocked"]),
        (node("ScatterND", IMAGE, reduction=b"mul"), ["blocked"]),
        (node("ScatterND", IMAGE, reduction=b"add"), []),
        (node("Upsample", IMAGE, mode=b"linear"), []),
        (node("Upsample", IMAGE, mode=b"cubic"), ["blocked"]),
        (node("Cast", IMAGE, outputs=(tensor(1, dtype="float64"),)), ["slow"]),
        (node("Cast", IMAGE, outputs=(tensor(1, dtype="int32"),)), []),
        (node("Cast", IMAGE, outputs=(tensor(1, dtype="float8e5m2"),)), ["blocked"]),
        (node("LayerNormalization", IMAGE), []),
    ],
)
def test_others(made: Node, expected: list[str]) -> None:
    assert verdicts(made) == expected


def test_layer_normalization_that_keeps_fp32() -> None:
    assert verdicts(node("LayerNormalization", IMAGE), STRICT) == ["unknown"]


def test_non_max_suppression_is_another_operator() -> None:
    assert verdicts(node("NonMaxSuppression", IMAGE)) == ["unknown"]
    boxes = tensor(1, dtype="int64", constant=True, array=np.array([800]))
    assert verdicts(node("NonMaxSuppression", IMAGE, IMAGE, boxes)) == ["unknown", "unknown"]


def test_no_dimension_may_be_zero() -> None:
    zero = ATC_EVERYWHERE[0]
    assert [finding.verdict for finding in zero(node("Relu", tensor(1, 0)), ATC)] == ["blocked"]
    assert not list(zero(node("Relu", tensor(1, "N")), ATC))
    assert not list(
        zero(node("Resize", IMAGE, tensor(0, constant=True)), ATC)
    )  # an empty `roi` is no tensor of the graph


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (node("MaxPool", IMAGE, kernel_shape=[2, 2]), []),
        (node("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[1, 1]), ["blocked"]),
        (node("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 2]), ["blocked"]),
        (node("AveragePool", IMAGE, kernel_shape=[2, 2], dilations=[1, 1]), ["blocked"]),
        (node("LayerNormalization", IMAGE), ["blocked"]),
        (node("If", tensor(dtype="bool")), ["blocked"]),
        (node("Loop", tensor(dtype="int64")), ["blocked"]),
        (node("Conv", IMAGE, strides=[1, 1]), []),
        (node("Conv", IMAGE), ["blocked"]),
        (node("InstanceNormalization", IMAGE), []),
        (node("InstanceNormalization", tensor(1, 3, 9)), ["blocked"]),
        (node("Cast", tensor(3, dtype="int64"), outputs=(tensor(3, dtype="bool"),)), ["unknown"]),
        (node("Cast", tensor(3), outputs=(tensor(3, dtype="bool"),)), ["unknown"]),
        (node("Cast", tensor(3), outputs=(tensor(3, dtype="int32"),)), ["unknown"]),
        (node("Cast", tensor(3, dtype="bool"), outputs=(tensor(3, dtype="int64"),)), []),
    ],
)
def test_mindspore_lite(made: Node, expected: list[str]) -> None:
    assert verdicts(made, LITE) == expected


@pytest.mark.parametrize(
    ("attributes", "rewrites"),
    [({}, []), ({"start": 0}, []), ({"start": 1}, ["slice_shape"]), ({"start": 0, "end": 2}, ["slice_shape"])],
)
def test_a_shape_from_0_is_the_whole_shape(attributes: dict[str, int], rewrites: list[str]) -> None:
    found = measured(node("Shape", IMAGE, outputs=(tensor(4, dtype="int64"),), **attributes), LITE)
    assert [finding.rewrite for finding in found] == rewrites


def test_what_the_cpu_runtime_refuses_another_may_take() -> None:
    on_soc = Question("mindspore-lite", "ascend310p", "fp16", shipped(), None)
    assert [finding.verdict for finding in MINDSPORE_LIMITS["Conv"](node("Conv", IMAGE), on_soc)] == ["unknown"]
    assert next(MINDSPORE_LIMITS["MaxPool"](node("MaxPool", dilations=[1, 1]), LITE)).rewrite == "strip_dilations"
