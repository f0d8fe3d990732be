"""Vector reductions that hold their sum in 16 bits: the sum is rounded, and may overflow, before it is scaled.

Written on the result, so that the operator's axes need no reading: sum = mean * count, sum of squares = norm squared.
Sums that are the result itself (ReduceSum, ReduceL1, ReduceSumSquare) are rounded as results. Partial sums are not
emulated: their order is the kernel's secret, and with values of one sign none exceeds the whole.
"""

from __future__ import annotations

from typing import Any, cast

import onnx
from onnx import TensorProto, helper

from orchestrator.ascend.precision import Low
from orchestrator.graph.twin.rounding import round_nodes

_helper = cast("Any", helper)  # partly untyped


def narrow_sum(node: Any, source: str, target: str, fmt: Low, *, saturating: bool) -> list[onnx.NodeProto]:
    """Return nodes that turn the result `source` of `node` into what it is with its sum rounded, as `target`."""
    prefix = f"{target}/sum"
    made: list[onnx.NodeProto] = []

    def add(kind: str, inputs: list[str], part: str, output: str = "", **attributes: Any) -> str:
        name = f"{prefix}/{part}"
        made.append(_helper.make_node(kind, inputs, [output or name], name=name, **attributes))
        return output or name

    def rounded(wide: str) -> str:
        made.extend(round_nodes(wide, f"{prefix}/rounded", fmt, saturating=saturating, prefix=f"{prefix}/round"))
        return f"{prefix}/rounded"

    if node.op_type in {"ReduceMean", "GlobalAveragePool"}:
        sizes = [add("Size", [node.input[0]], "items"), add("Size", [source], "means")]
        count = add("Cast", [add("Div", sizes, "per_mean")], "count", to=TensorProto.FLOAT)
        add("Div", [rounded(add("Mul", [source, count], "wide")), count], "scale", target)
    elif node.op_type == "ReduceL2":
        add("Sqrt", [rounded(add("Mul", [source, source], "wide"))], "root", target)
    elif node.op_type == "ReduceLogSum":
        add("Log", [rounded(add("Exp", [source], "wide"))], "log", target)
    else:
        add("Identity", [source], "same", target)
    return made
