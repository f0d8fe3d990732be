"""Opset down-conversion of our own: what torch's exporters and `onnx.version_converter` leave undone, or do wrong in silence.

Each operator's rules stand in `opset_rules.py`. All others are taken by what ONNX's schemas say: an operator may stay as it
is when its older version has the attributes, inputs and element types that the node uses; everything else is a problem
that names the node. Nothing is written when there is one.
"""

from __future__ import annotations

from typing import Any, Final

import onnx.defs
import onnx_ir as ir

from orchestrator.graph.rewrites.base import CannotRewrite, Changes, Context, Problem, refused, schema
from orchestrator.graph.rewrites.build import Builder, Names, attribute, nodes, opset_of, problem
from orchestrator.graph.rewrites.opset_rules import RULES

LOWEST: Final = 11
"""Below this the rules of ONNX differ more than any of our targets asks for."""

_TYPE_NAMES: Final = {
    ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double", ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16", ir.DataType.INT8: "int8", ir.DataType.INT16: "int16",
    ir.DataType.INT32: "int32", ir.DataType.INT64: "int64", ir.DataType.UINT8: "uint8", ir.DataType.UINT16: "uint16",
    ir.DataType.UINT32: "uint32", ir.DataType.UINT64: "uint64", ir.DataType.BOOL: "bool", ir.DataType.STRING: "string",
}  # fmt: skip

_REMOVED_BY: Final = {
    "Gelu": "decompose_gelu", "HardSwish": "decompose_hard_swish", "Mish": "decompose_mish",
    "Swish": "decompose_swish", "CastLike": "decompose_cast_like", "Trilu": "decompose_trilu",
    "LayerNormalization": "decompose_layer_normalization", "RMSNormalization": "decompose_rms_normalization",
    "GroupNormalization": "decompose_group_normalization", "Einsum": "decompose_einsum",
}  # fmt: skip


def lower_opset(model: ir.Model, context: Context) -> Changes:
    """Bring the graph down to `context.opset`.

    Raises:
        GateError: Nodes that cannot be expressed there; each is named with the reason.
    """
    source, target = opset_of(model), context.opset
    changes = Changes()
    if source <= target:
        return changes
    problems = [Problem("", "", f"opset {target} is below {LOWEST}")] if target < LOWEST else []
    names, seen = Names(model), set[int]()
    before = {id(node) for node in nodes(model)}
    while todo := [node for node in nodes(model) if id(node) not in seen]:
        for node in todo:
            seen.add(id(node))
            try:
                touched = _lower(model, node, names, source, target)
            except CannotRewrite as error:
                problems.append(problem(node, str(error)))
                continue
            if touched and id(node) in before:
                changes.nodes.append(node.name or "")
    if problems:
        raise refused(
            f"the graph cannot be brought from opset {source} to {target}", problems,
            "change the operator in the model, or choose a target whose toolchain reads a newer opset",
        )  # fmt: skip
    model.opset_imports[""] = target
    model.opset_imports.pop("ai.onnx", None)
    changes.nodes = changes.nodes or ["(opset)"]
    return changes


def _lower(model: ir.Model, node: ir.Node, names: Names, source: int, target: int) -> bool:
    touched = False
    for since, rule in RULES.get(node.op_type, ()):
        if target < since <= source and node.graph is not None:
            touched = bool(rule(Builder(model, node, names), node)) or touched
    if node.graph is not None:
        touched = _fit(node, source, target) or touched
    return touched


def _fit(node: ir.Node, source: int, target: int) -> bool:
    """Check a node against its older schema; drop attributes that only say the default."""
    new, old = schema(node.op_type, source), schema(node.op_type, target)
    if old is None:
        rewrite = _REMOVED_BY.get(node.op_type)
        fix = f"; the rewrite {rewrite} would remove it" if rewrite else ""
        raise CannotRewrite(f"the operator does not exist at opset {target}{fix}")
    if new is None or new.since_version == old.since_version:
        return False
    touched = _fit_attributes(node, new, old, target)
    given = max((index + 1 for index, value in enumerate(node.inputs) if value is not None), default=0)
    if given > old.max_input or len(node.outputs) > old.max_output:
        raise CannotRewrite(f"opset {target} has fewer inputs or outputs for it")
    _check_types(node, old, target)
    return touched


def _fit_attributes(node: ir.Node, new: onnx.defs.OpSchema, old: onnx.defs.OpSchema, target: int) -> bool:
    touched = False
    for name in list(node.attributes):
        if name in old.attributes:
            continue
        if attribute(node, name) != _default(new, name):
            raise CannotRewrite(f"opset {target} has no attribute {name} (here {attribute(node, name)!r})")
        del node.attributes[name]
        touched = True
    for name in old.attributes:
        default = _default(new, name)
        if name not in node.attributes and default is not None and default != _default(old, name):
            node.attributes[name] = ir.convenience.convert_attribute(name, default)
            touched = True
    return touched


def _default(found: onnx.defs.OpSchema, name: str) -> Any:
    declared = found.attributes.get(name)
    if declared is None or not declared.default_value.name:
        return None
    value = onnx.helper.get_attribute_value(declared.default_value)
    return value.decode() if isinstance(value, bytes) else value


def _check_types(node: ir.Node, old: onnx.defs.OpSchema, target: int) -> None:
    for values, formals in ((node.inputs, old.inputs), (node.outputs, old.outputs)):
        for index, value in enumerate(values):
            if value is None or value.dtype is None or not formals:
                continue
            allowed = formals[min(index, len(formals) - 1)].types
            name = _TYPE_NAMES.get(value.dtype)
            if name is None or f"tensor({name})" not in allowed:
                shown = name or str(value.dtype).lower()
                raise CannotRewrite(f"opset {target} does not take {shown} for {value.name!r}")
