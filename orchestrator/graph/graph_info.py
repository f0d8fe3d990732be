"""What an ONNX file is, in plain data: opset, inputs, outputs, operators."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import onnx
from onnx import TensorProto

from orchestrator.core.errors import GateError
from orchestrator.graph.spec import TensorSpec, specs_from_list

Exporter = Literal["dynamo", "torchscript", "source"]

_DTYPES: Final[Mapping[int, str]] = {
    TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.DOUBLE: "float64",
    TensorProto.INT8: "int8", TensorProto.INT16: "int16", TensorProto.INT32: "int32", TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8", TensorProto.UINT16: "uint16", TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64", TensorProto.BOOL: "bool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GraphInfo:
    """What was read of an ONNX file that passed the checks.

    Attributes:
        opsets: Operator domain -> version; `ai.onnx` is the empty domain.
        inputs: Without initializers. A dimension that may vary keeps its name, or is called `<tensor>_<axis>`.
        op_counts: Operator -> number of nodes in the main graph, most frequent first.
        external_files: Names of the files beside the model that hold weights.
    """

    path: Path
    opsets: Mapping[str, int]
    ir_version: int
    producer: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    node_count: int
    op_counts: Mapping[str, int]
    external_files: tuple[str, ...]

    @property
    def opset(self) -> int:
        """Version of `ai.onnx`."""
        return self.opsets[""]

    def to_json(self, exporter: Exporter) -> dict[str, object]:
        """Return the content of `onnx.json`."""
        return {
            "opset": self.opset,
            "ir_version": self.ir_version,
            "producer": self.producer,
            "exporter": exporter,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "node_count": self.node_count,
            "op_counts": dict(self.op_counts),
            "external_files": list(self.external_files),
        }

    def to_text(self) -> str:
        """Return everything as JSON, to cross a process boundary."""
        return json.dumps({**self.to_json("source"), "opsets": dict(self.opsets)})

    @classmethod
    def from_text(cls, path: Path, text: str) -> GraphInfo:
        """Read what `to_text` wrote."""
        data: dict[str, Any] = json.loads(text)
        return cls(
            path=path,
            opsets=data["opsets"],
            ir_version=data["ir_version"],
            producer=data["producer"],
            inputs=specs_from_list(data["inputs"]),
            outputs=specs_from_list(data["outputs"]),
            node_count=data["node_count"],
            op_counts=data["op_counts"],
            external_files=tuple(data["external_files"]),
        )


def describe(model: onnx.ModelProto, path: Path, external: tuple[str, ...]) -> GraphInfo:
    """Say what a walked model is.

    Raises:
        GateError: An input or output is no tensor, or of an element type that cannot be served.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer} | {item.values.name for item in graph.sparse_initializer}
    counts = Counter(node.op_type for node in graph.node)
    return GraphInfo(
        path=path,
        opsets={"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import},
        ir_version=model.ir_version,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=_specs((value for value in graph.input if value.name not in weights), path),
        outputs=_specs(graph.output, path),
        node_count=len(graph.node),
        op_counts=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        external_files=external,
    )


def _specs(values: Iterable[Any], path: Path) -> tuple[TensorSpec, ...]:
    return tuple(_spec(value, path) for value in values)


def _spec(value: Any, path: Path) -> TensorSpec:
    if value.type.WhichOneof("value") != "tensor_type":
        raise GateError(
            f"{value.name[:80]!r} is no tensor", place=path.name, hint="sequences, maps and optionals cannot be served"
        )
    tensor = value.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type)
    if dtype is None:
        name = TensorProto.DataType.Name(tensor.elem_type) if tensor.elem_type in TensorProto.DataType.values() else "?"
        raise GateError(
            f"{value.name[:80]!r} has element type {name}, which cannot be served",
            place=path.name,
            hint="cast it in the model",
        )
    dims = [_dim(dim, f"{value.name}_{axis}") for axis, dim in enumerate(tensor.shape.dim)]
    return TensorSpec(value.name, dtype, tuple(dims))


def _dim(dim: Any, fallback: str) -> int | str:
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    return str(dim.dim_param) or fallback
