"""Element types of a node's outputs, from the operators' schemas.

Shape inference would do more than is needed and leaves gaps where shapes are unknown; types follow from the inputs' types
and the schema alone, without any weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, cast

import onnx
from onnx import TensorProto

UNKNOWN: Final = 0
"""Element type of what is no tensor, or could not be told."""

_defs = cast("Any", onnx.defs)  # partly untyped
_NAMES: Final = {
    f"tensor({name.lower()})": int(value)
    for name, value in TensorProto.DataType.items()
    if name not in {"UNDEFINED", "FLOAT"}
} | {"tensor(float)": int(TensorProto.FLOAT)}
_BY_ATTRIBUTE: Final = {
    "Cast": "to", "EyeLike": "dtype", "RandomNormal": "dtype", "RandomUniform": "dtype", "RandomNormalLike": "dtype",
    "RandomUniformLike": "dtype", "Bernoulli": "dtype", "Multinomial": "dtype",
}  # fmt: skip


def output_types(node: Any, inputs: Sequence[int], opset: int) -> list[int]:
    """Return the element type of each output; `UNKNOWN` where the schema does not tell.

    Args:
        node: Any node without subgraphs; those with subgraphs carry types through them.
        inputs: Element types of its inputs, `UNKNOWN` for absent ones.
        opset: Version of the node's domain.
    """
    if node.op_type in {"Constant", "ConstantOfShape"}:
        return [_constant_type(node)]
    attribute = _BY_ATTRIBUTE.get(node.op_type)
    for item in node.attribute:
        if item.name == attribute:
            return [int(item.i)]
    schema = _schema(node.op_type, opset, node.domain)
    if schema is None:
        return [UNKNOWN] * len(node.output)
    bound: dict[str, int] = {}
    for index, kind in enumerate(inputs):
        name = _parameter(schema.inputs, index)
        if name is not None and kind != UNKNOWN:
            bound.setdefault(name, kind)
    return [_type_of(schema, _parameter(schema.outputs, index), bound) for index in range(len(node.output))]


def _type_of(schema: Any, name: str | None, bound: dict[str, int]) -> int:
    if name is None:
        return UNKNOWN
    if name in bound:
        return bound[name]
    if name in _NAMES:
        return _NAMES[name]
    allowed = next((item.allowed_type_strs for item in schema.type_constraints if item.type_param_str == name), ())
    return _NAMES.get(allowed[0], UNKNOWN) if len(allowed) == 1 else UNKNOWN


def _parameter(parameters: Sequence[Any], index: int) -> str | None:
    """Return the type variable or literal type of a formal parameter; a variadic last one repeats if it is uniform."""
    if index < len(parameters):
        return str(parameters[index].type_str)
    if parameters and parameters[-1].option == _defs.OpSchema.FormalParameterOption.Variadic:
        return str(parameters[-1].type_str)
    return None


def _constant_type(node: Any) -> int:
    for item in node.attribute:
        if item.name == "value":
            return int(item.t.data_type)
        if item.name in {"value_float", "value_floats"}:
            return int(TensorProto.FLOAT)
        if item.name in {"value_int", "value_ints"}:
            return int(TensorProto.INT64)
    return int(TensorProto.FLOAT) if node.op_type == "ConstantOfShape" else UNKNOWN


@cache
def _schema(op_type: str, opset: int, domain: str) -> Any:
    try:
        return _defs.get_schema(op_type, opset, "" if domain == "ai.onnx" else domain)
    except _defs.SchemaError:
        return None
