"""LSTM written out in full, for a toolchain that takes no shorter form."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from orchestrator.graph.rewrites.base import CannotRewrite
from orchestrator.graph.rewrites.build import Builder, argument, attribute, dims_of, need_dtype, needed
from orchestrator.graph.rewrites.each import each, on_demand

_OUTPUTS = 3
_INITIAL = (5, 6)


@each("LSTM", when=on_demand)
def complete_lstm(b: Builder, node: ir.Node) -> bool:
    """Name all three outputs, used or not, and state the initial states, which are zeros when left out."""
    if attribute(node, "layout", 0):
        raise CannotRewrite("its batch is first")
    missing = [index for index in _INITIAL if argument(node, index) is None]
    short = len(node.outputs) < _OUTPUTS or any(not value.name for value in node.outputs)
    if not missing and not short:
        return False
    if missing:
        x = needed(node, 0)
        dims = dims_of(x)
        batch = dims[1] if dims and len(dims) == 3 else None
        if batch is None:
            raise CannotRewrite("its batch is not fixed and it states no initial state")
        directions = 2 if attribute(node, "direction", "forward") == "bidirectional" else 1
        size = (directions, batch, int(attribute(node, "hidden_size")))
        node.resize_inputs(max(len(node.inputs), _INITIAL[-1] + 1))
        for index in missing:
            zeros = b.constant(np.zeros(size, need_dtype(x)), "initial_h" if index == _INITIAL[0] else "initial_c")
            node.replace_input_with(index, zeros)
    if short:
        node.resize_outputs(_OUTPUTS)
        for value, suffix in zip(node.outputs, ("y", "y_h", "y_c"), strict=True):
            if not value.name:
                value.name = b.names.value(f"{node.name}/{suffix}")
                value.type = node.outputs[0].type or (needed(node, 0).type)
    return True
