"""Nodes in the making: each gets a name under one prefix, and its tensor the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import onnx
from onnx import TensorProto, helper

_helper = cast("Any", helper)  # partly untyped


class Sketch:
    """A list of new nodes whose names all start with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []

    def add(self, kind: str, inputs: Sequence[str], part: str, output: str = "", **attributes: Any) -> str:
        """Add a node called `<prefix>/<part>` and return its output, called the same unless `output` is given."""
        name = f"{self.prefix}/{part}"
        self.nodes.append(_helper.make_node(kind, list(inputs), [output or name], name=name, **attributes))
        return output or name

    def number(self, value: float, part: str) -> str:
        """Add an fp32 scalar constant; as a tensor, which every opset has."""
        tensor = _helper.make_tensor(f"{self.prefix}/{part}", TensorProto.FLOAT, [], [value])
        return self.add("Constant", [], part, value=tensor)

    def ints(self, values: Sequence[int], part: str) -> str:
        """Add a constant vector of int64."""
        tensor = _helper.make_tensor(f"{self.prefix}/{part}", TensorProto.INT64, [len(values)], list(values))
        return self.add("Constant", [], part, value=tensor)

    def item(self, values: str, index: int, part: str) -> str:
        """Take one item of the first axis, which goes away."""
        tensor = _helper.make_tensor(f"{self.prefix}/{part}/index", TensorProto.INT64, [], [index])
        return self.add("Gather", [values, self.add("Constant", [], f"{part}/index", value=tensor)], part, axis=0)

    def cut(self, values: str, start: int, end: int, part: str) -> str:
        """Take a range of the last axis."""
        bounds = [
            self.ints([number], f"{part}/{what}") for what, number in (("from", start), ("to", end), ("axis", -1))
        ]
        return self.add("Slice", [values, *bounds], part)
