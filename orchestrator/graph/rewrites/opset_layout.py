"""Recurrent layers with the batch first (`layout` 1, opset 14): transposed around a layer with the time first."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from orchestrator.graph.rewrites.build import Builder, argument

_STATES: Final = (5, 6)
"""Inputs initial_h and initial_c: [batch, directions, hidden] with layout 1."""


def batch_first(b: Builder, node: ir.Node) -> bool:
    """Take `layout` off."""
    found = node.attributes.get("layout")
    if found is None:
        return False
    if found.as_int() == 0:
        del node.attributes["layout"]
        return True
    inputs = [argument(node, index) for index in range(len(node.inputs))]
    for index in (0, *_STATES):
        value = inputs[index] if index < len(inputs) else None
        if value is not None:
            inputs[index] = _turned(b, value, [1, 0, 2], f"input_{index}")
    kept = {name: value for name, value in node.attributes.items() if name != "layout"}
    layer = ir.Node(
        "", node.op_type, inputs, kept, num_outputs=len(node.outputs),
        name=b.names.node(f"{node.name}/time_first"), metadata_props=dict(node.metadata_props),
    )  # fmt: skip
    for old, new in zip(node.outputs, layer.outputs, strict=True):
        new.name, new.type = b.names.value(f"{layer.name}_{old.index()}"), old.type
    b.graph.insert_before(node, layer)
    b.made.append(layer)
    back = ([2, 0, 1, 3], [1, 0, 2], [1, 0, 2])
    used = [bool(value.uses()) or value.is_graph_output() for value in node.outputs]
    b.replace(
        *(
            _turned(b, value, back[index], f"output_{index}") if used[index] else None
            for index, value in enumerate(layer.outputs)
        )
    )
    return True


def _turned(b: Builder, value: ir.Value, perm: list[int], suffix: str) -> ir.Value:
    return b.op("Transpose", [value], suffix, dtype=value.dtype, shape=[None] * len(perm), perm=perm)
