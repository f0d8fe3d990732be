"""Vector reductions that hold their sum in 16 bits: the sum is rounded, and may overflow, before it is scaled.

Written on the result, so that the operator's axes need no reading: sum = mean * count, sum of squares = norm squared.
Sums that are the result itself (ReduceSum, ReduceL1, ReduceSumSquare) are rounded as results. Partial sums are not
emulated: their order is the kernel's secret, and with values of one sign none exceeds the whole.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto

from orchestrator.ascend.precision import Low
from orchestrator.graph.twin.rounding import round_nodes
from orchestrator.graph.twin.sketch import Sketch


def narrow_sum(node: Any, source: str, target: str, fmt: Low, *, saturating: bool) -> list[onnx.NodeProto]:
    """Return nodes that turn the result `source` of `node` into what it is with its sum rounded, as `target`."""
    made = Sketch(f"{target}/sum")

    def rounded(wide: str) -> str:
        held = f"{made.prefix}/rounded"
        made.nodes.extend(round_nodes(wide, held, fmt, saturating=saturating, prefix=f"{made.prefix}/round"))
        return held

    if node.op_type in {"ReduceMean", "GlobalAveragePool"}:
        sizes = [made.add("Size", [node.input[0]], "items"), made.add("Size", [source], "means")]
        count = made.add("Cast", [made.add("Div", sizes, "per_mean")], "count", to=TensorProto.FLOAT)
        made.add("Div", [rounded(made.add("Mul", [source, count], "wide")), count], "scale", target)
    elif node.op_type == "ReduceL2":
        made.add("Sqrt", [rounded(made.add("Mul", [source, source], "wide"))], "root", target)
    elif node.op_type == "ReduceLogSum":
        made.add("Log", [rounded(made.add("Exp", [source], "wide"))], "log", target)
    else:
        made.add("Identity", [source], "same", target)
    return made.nodes
