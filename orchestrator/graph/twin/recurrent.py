"""LSTM, GRU and RNN step by step, so that the state is rounded in every step, as the matrix unit reads it.

As one node the runtime would carry the state in fp32 from step to step, which is up to 3 dB too good. What is inside a
step (gates, their sums) stays in fp32. Forms that no exporter of torch writes (own activations, peepholes, clipping,
sequence lengths, batch first) stay one node with only their inputs and results rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import onnx
from onnx import TensorProto, helper

from orchestrator.ascend.precision import Low, Rounding
from orchestrator.graph.twin.rounding import round_nodes
from orchestrator.graph.twin.sketch import Sketch

RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})
_GATES: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}
_PLAIN: Final = frozenset({"hidden_size", "direction", "linear_before_reset"})
_H, _C, _X = "h", "c", "x"
_helper = cast("Any", helper)  # partly untyped


def recurrent_nodes(node: Any, rounding: Rounding, fmt: Low, *, saturating: bool) -> list[onnx.NodeProto] | None:
    """Return the nodes that do what a recurrent `node` does, with its states rounded in every step.

    None means that it stays as it is: it is no recurrent operator, reads in fp32, or has a form that is not taken apart.
    """
    if node.op_type not in RECURRENT or rounding.inputs == "keep" or not is_plain(node):
        return None
    attributes = {item.name: item for item in node.attribute}
    direction = attributes["direction"].s.decode() if "direction" in attributes else "forward"
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    linear = "linear_before_reset" in attributes and bool(attributes["linear_before_reset"].i)
    cell = _Cell(node, int(attributes["hidden_size"].i), rounding, fmt, saturating, linear)
    results = [cell.way(index, backwards=backwards) for index, backwards in enumerate(ways)]
    for position, name in enumerate(node.output):
        if name:
            parts = [result[position] for result in results]
            cell.sketch.add("Concat", parts, f"join{position}", name, axis=1 if position == 0 else 0)
    return cell.sketch.nodes


def is_plain(node: Any) -> bool:
    """Tell whether a recurrent operator has the form that is taken apart."""
    given = {item.name for item in node.attribute if item.name != "layout" or item.i}
    lengths_or_peepholes = [name for index, name in enumerate(node.input) if index in {4, 7} and name]
    return given <= _PLAIN and "hidden_size" in given and not lengths_or_peepholes


@dataclass(slots=True)
class _Cell:
    """One recurrent operator in the making."""

    node: Any
    size: int
    rounding: Rounding
    fmt: Low
    saturating: bool
    linear: bool
    sketch: Sketch

    def __init__(self, node: Any, size: int, rounding: Rounding, fmt: Low, saturating: bool, linear: bool) -> None:
        self.node, self.size, self.rounding, self.fmt = node, size, rounding, fmt
        self.saturating, self.linear = saturating, linear
        self.sketch = Sketch(f"{node.name or next(name for name in node.output if name)}/steps")

    def way(self, index: int, *, backwards: bool) -> list[str]:
        """Run one direction; return what is to be joined for each of the operator's outputs."""
        made, size, prefix = self.sketch, self.size, f"way{index}"
        gates = _GATES[self.node.op_type] * size
        weights = [
            made.add("Transpose", [made.item(self.node.input[at], index, f"{prefix}/{name}")], f"{prefix}/{name}t")
            for name, at in (("w", 1), ("r", 2))
        ]
        driven = made.add("MatMul", [self.node.input[0], weights[0]], f"{prefix}/drive")
        inner = ""
        if self._input(3):
            bias = made.item(self.node.input[3], index, f"{prefix}/b")
            outer = made.cut(bias, 0, gates, f"{prefix}/wb")
            inner = made.cut(bias, gates, 2 * gates, f"{prefix}/rb")
            driven = made.add("Add", [driven, outer], f"{prefix}/biased")
        starts = [self._start(5, index, f"{prefix}/h0")]
        if self.node.op_type == "LSTM":
            starts.append(self._start(6, index, f"{prefix}/c0"))
        body = self._body(f"{prefix}/body", weights[1], inner)
        ends = [f"{made.prefix}/{prefix}/{name}" for name in ("hn", "cn")[: len(starts)]]
        stacked = f"{made.prefix}/{prefix}/y"
        order = [1 if backwards else 0]
        made.nodes.append(
            _helper.make_node(
                "Scan", [*starts, driven], [*ends, stacked], name=f"{made.prefix}/{prefix}/scan", body=body,
                num_scan_inputs=1, scan_input_directions=order, scan_output_directions=order,
            )
        )  # fmt: skip
        shapes = [[0, 1, -1, size], [1, -1, size], [1, -1, size]]
        return [
            made.add("Reshape", [name, made.ints(shape, f"{prefix}/shape{at}")], f"{prefix}/result{at}")
            for at, (name, shape) in enumerate(zip([stacked, *ends], shapes, strict=False))
        ]

    def _input(self, position: int) -> str:
        return self.node.input[position] if position < len(self.node.input) else ""

    def _start(self, position: int, index: int, part: str) -> str:
        made = self.sketch
        if self._input(position):
            return made.item(self._input(position), index, part)
        batch = made.cut(made.add("Shape", [self.node.input[0]], f"{part}/shape"), 1, 2, f"{part}/batch")
        sizes = [batch, made.ints([self.size], f"{part}/hidden")]
        return made.add("ConstantOfShape", [made.add("Concat", sizes, f"{part}/sizes", axis=0)], part)

    def _body(self, part: str, weight: str, bias: str) -> Any:
        body = Sketch(f"{self.sketch.prefix}/{part}")
        states = [_H, _C] if self.node.op_type == "LSTM" else [_H]
        formal = {name: f"{body.prefix}/{name}" for name in (*states, _X)}
        step = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.node.op_type]
        results = step(body, formal, weight, bias)
        written = [self._round(body, name, f"next{at}", self.rounding.output) for at, name in enumerate(results)]
        each = body.add("Identity", [written[0]], "each")
        ends = [body.add("Identity", [name], f"end{at}") for at, name in enumerate(written)]
        infos = [[_info(name) for name in names] for names in (formal.values(), (*ends, each))]
        return _helper.make_graph(body.nodes, body.prefix, infos[0], infos[1])

    def _round(self, made: Sketch, source: str, part: str, fmt: str) -> str:
        if fmt == "keep":
            return source
        target = f"{made.prefix}/{part}"
        made.nodes.extend(
            round_nodes(source, target, self.fmt, saturating=self.saturating, prefix=f"{made.prefix}/{part}/round")
        )
        return target

    def _recur(self, made: Sketch, state: str, weight: str, bias: str, part: str) -> str:
        """Multiply a state as the matrix unit does: rounded."""
        product = made.add("MatMul", [self._round(made, state, f"{part}/in", self.rounding.inputs), weight], part)
        return made.add("Add", [product, bias], f"{part}/biased") if bias else product

    def _cuts(self, made: Sketch, values: str, count: int, part: str) -> list[str]:
        return [made.cut(values, at * self.size, (at + 1) * self.size, f"{part}{at}") for at in range(count)]

    def _lstm(self, made: Sketch, formal: dict[str, str], weight: str, bias: str) -> Sequence[str]:
        gates = made.add("Add", [formal[_X], self._recur(made, formal[_H], weight, bias, "recur")], "gates")
        i, o, f, g = self._cuts(made, gates, 4, "gate")
        opened = [made.add("Sigmoid", [gate], f"{name}") for name, gate in (("i", i), ("o", o), ("f", f))]
        kept = made.add("Mul", [opened[2], formal[_C]], "kept")
        fresh = made.add("Mul", [opened[0], made.add("Tanh", [g], "g")], "fresh")
        cell = made.add("Add", [kept, fresh], "cell")
        return made.add("Mul", [opened[1], made.add("Tanh", [cell], "shown")], "hidden"), cell

    def _gru(self, made: Sketch, formal: dict[str, str], weight: str, bias: str) -> Sequence[str]:
        size = self.size
        driven = self._cuts(made, formal[_X], 3, "drive")
        recurring = self._cuts(made, self._recur(made, formal[_H], weight, bias, "recur"), 3, "recurring")
        z, r = (
            made.add("Sigmoid", [made.add("Add", [driven[at], recurring[at]], f"{name}/sum")], name)
            for at, name in enumerate(("z", "r"))
        )
        if self.linear:
            inner = made.add("Mul", [r, recurring[2]], "reset")
        else:
            part = made.cut(weight, 2 * size, 3 * size, "weight_n")
            rest = made.cut(bias, 2 * size, 3 * size, "bias_n") if bias else ""
            inner = self._recur(made, made.add("Mul", [r, formal[_H]], "reset"), part, rest, "recur_n")
        n = made.add("Tanh", [made.add("Add", [driven[2], inner], "n/sum")], "n")
        # written with one product: z times the old state plus the rest times the new
        change = made.add("Mul", [z, made.add("Sub", [formal[_H], n], "difference")], "change")
        return [made.add("Add", [n, change], "hidden")]

    def _rnn(self, made: Sketch, formal: dict[str, str], weight: str, bias: str) -> Sequence[str]:
        total = made.add("Add", [formal[_X], self._recur(made, formal[_H], weight, bias, "recur")], "sum")
        return [made.add("Tanh", [total], "hidden")]


def _info(name: str) -> Any:
    return _helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
