"""An interpreter of ONNX graphs that stores tensors in 16 bits, independent of `orchestrator.graph`.

It shares nothing with the twin but the policy (which operator reads and writes in which format). Rounding is numpy's own,
decided while it runs: each value knows whether it was written in 16 bits. Whatever a 16-bit operator reads is rounded,
whatever it writes is rounded; sums are fp32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from orchestrator.ascend.precision import Policy
from support.numpy_operators import OPERATORS, gru, lstm, total

Array = np.ndarray[Any, Any]
_CONTROL = {"If", "Loop", "Scan"}


@dataclass
class Value:
    array: Array
    written_low: bool = False
    computed_low: bool = False
    weight: bool = False


@dataclass
class Interpreter:
    """Runs one model; `overflowed` tells afterwards whether any rounded value reached the end of the range.
    States of recurrent
       operators are rounded in every step: where they are multiplied, and where they are written.
    """

    policy: Policy
    keep: frozenset[str] = frozenset()
    overflowed: bool = field(default=False, init=False)

    def run(self, model: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
        with np.errstate(all="ignore"):
            values = self._graph(model.graph, {name: Value(array) for name, array in inputs.items()}, {})
        return [value.array for value in values]

    def _graph(self, graph: Any, given: dict[str, Value], around: dict[str, Value]) -> list[Value]:
        values = {**around}
        for tensor in graph.initializer:
            values[tensor.name] = Value(numpy_helper.to_array(tensor), weight=True)
        values.update(given)
        for node in graph.node:
            attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            read = [values[name] if name else None for name in node.input]
            if node.op_type in _CONTROL:
                results = getattr(self, f"_{node.op_type.lower()}")(read, attributes, values)
            else:
                results = self._node(node, read, attributes)
            values.update(zip(node.output, results, strict=False))
        return [values[item.name] for item in graph.output]

    def _node(self, node: Any, read: list[Value | None], attributes: dict[str, Any]) -> list[Value]:
        rule = self.policy.of(node.op_type, node.domain)
        low_in, low_out = rule.inputs != "keep", rule.output != "keep"
        lead = [v.computed_low for v in read if v is not None and v.array.dtype == np.float32 and not v.weight]
        if node.name in self.keep or (rule.follows and not (lead and lead[0])):
            low_in = low_out = False
        arrays = [
            None if value is None else self._read(value, low=low_in and index not in rule.wide_inputs)
            for index, value in enumerate(read)
        ]
        while arrays and arrays[-1] is None:
            arrays.pop()
        results = self._compute(node.op_type, arrays, attributes, low_in, low_out)
        return [self._write(np.asarray(result), low_out) for result in results]

    def _compute(
        self, kind: str, arrays: list[Any], attributes: dict[str, Any], low_in: bool, low: bool
    ) -> list[Array]:
        if kind in {"LSTM", "GRU"}:
            step = self._round if low else (lambda x: x)
            enter = self._round if low_in else (lambda x: x)
            return list((lstm if kind == "LSTM" else gru)(*arrays, enter, step, attributes["hidden_size"]))
        if low and self.policy.accumulates(kind) == "fp16":
            if kind == "ReduceMean":
                held, count = total(arrays[0], arrays, attributes)
                return [self._round(held) / np.float32(count)]
            if kind == "GlobalAveragePool":
                held, count = total(arrays[0], [], {"axes": list(range(2, arrays[0].ndim))})
                return [self._round(held) / np.float32(count)]
            if kind == "ReduceL2":
                return [np.sqrt(self._round(total(arrays[0] * arrays[0], arrays, attributes)[0]))]
        results = OPERATORS[kind](arrays, attributes)
        return results if isinstance(results, list) else [results]

    def _read(self, value: Value, *, low: bool) -> Array:
        if value.array.dtype != np.float32 or not (low or value.written_low):
            return value.array
        if value.weight:
            most = 65504.0 if self.policy.low == "fp16" else 3.3895313892515355e38
            return self._round(np.clip(value.array, -most, most))
        return self._round(value.array)

    def _write(self, array: Array, low: bool) -> Value:
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        if array.dtype != np.float32:
            return Value(array)
        return Value(self._round(array) if low else array, written_low=low, computed_low=low)

    def _round(self, array: Array) -> Array:
        array = np.asarray(array, np.float32)
        if self.policy.low == "fp16":
            found = array.astype(np.float16).astype(np.float32)
            most = 65504.0
        else:
            bits = array.view(np.uint32).astype(np.uint64)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            found = np.where(np.isnan(array), np.float32(np.nan), bits.astype(np.uint32).view(np.float32))
            most = 3.3895313892515355e38
        if self.policy.saturating:
            found = np.where(np.isnan(found), np.float32(0), np.clip(found, -most, most)).astype(np.float32)
        self.overflowed |= not bool(np.all(np.abs(found) < most))
        if self.policy.saturating:
            self.overflowed |= bool(np.isnan(array).any())
        return found

    def _if(self, read: list[Any], attributes: dict[str, Any], around: dict[str, Value]) -> list[Value]:
        return self._graph(attributes["then_branch" if bool(read[0].array) else "else_branch"], {}, around)

    def _loop(self, read: list[Any], attributes: dict[str, Any], around: dict[str, Value]) -> list[Value]:
        body = attributes["body"]
        states, stacked, going = read[2:], [], True
        for turn in range(int(read[0].array)):
            if not going:
                break
            formal = [Value(np.array(turn)), Value(np.array(going)), *states]
            results = self._graph(body, self._bind(body, formal), around)
            going, states = bool(results[0].array), results[1 : 1 + len(states)]
            stacked.append(results[1 + len(states) :])
        return [*states, *self._stack(stacked)]

    def _scan(self, read: list[Any], attributes: dict[str, Any], around: dict[str, Value]) -> list[Value]:
        body, count = attributes["body"], attributes["num_scan_inputs"]
        states, items, stacked = read[:-count], read[-count:], []
        for turn in range(items[0].array.shape[0]):
            parts = [Value(item.array[turn], item.written_low, item.computed_low) for item in items]
            results = self._graph(body, self._bind(body, [*states, *parts]), around)
            states = results[: len(states)]
            stacked.append(results[len(states) :])
        return [*states, *self._stack(stacked)]

    @staticmethod
    def _bind(body: Any, values: list[Value]) -> dict[str, Value]:
        return {item.name: value for item, value in zip(body.input, values, strict=True)}

    @staticmethod
    def _stack(turns: list[list[Value]]) -> list[Value]:
        return [
            Value(np.stack([part.array for part in parts]), parts[0].written_low, parts[0].computed_low)
            for parts in zip(*turns, strict=True)
        ]
