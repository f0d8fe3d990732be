"""A private folder in which all probe graphs of one forecast share one file of weights.

Every pass builds a graph of its own (statistics, shadow, masks). Were the weights inside each, memory would double with
every pass; so they are written once and each graph, a few hundred kilobytes, names them as external data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from orchestrator.core.errors import GateError
from orchestrator.graph.read import load_model

Array = np.ndarray[Any, Any]

INLINE_BYTES: Final = 1024
"""Smaller tensors stay in the graph, where shape inference can read them."""

_SAME_VALUES: Final = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_WEIGHTS: Final = "weights.bin"
_ALIGN_BYTES: Final = 4096
_ort = cast("Any", onnxruntime)  # ships no types


@dataclass(slots=True)
class Workspace:
    """The graph without its weights, the weights beside it, and the element type of every tensor.

    Attributes:
        folder: Private; the caller removes it.
        model: The graph; initializers above `INLINE_BYTES` are external data in `weights.bin`.
        types: Tensor -> ONNX element type, main graph; only tensors.
        shapes: Tensor -> shape on the sample that `measure_shapes` saw; main graph.
        rounded: Weights that were rounded already, by name and format.
        size_bytes: Length of the file of weights.
        unnamed: Nodes of the main graph that had no name of their own and got one.
    """

    folder: Path
    model: onnx.ModelProto
    types: dict[str, int] = field(default_factory=dict[str, int])
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    rounded: dict[str, Any] = field(default_factory=dict[str, Any])
    threads: int = 0
    size_bytes: int = 0
    unnamed: int = 0
    _count: int = 0

    @property
    def graph(self) -> Any:
        """The main graph."""
        return self.model.graph

    @property
    def opset(self) -> int:
        """Version of `ai.onnx`."""
        return next(int(entry.version) for entry in self.model.opset_import if entry.domain in ("", "ai.onnx"))

    def copies(self) -> dict[str, str]:
        """Return the float tensors that hold the same values as another, in another shape or order -> that other."""
        found: dict[str, str] = {}
        weights = self.weights
        for node in self.graph.node:
            moves = node.op_type in _SAME_VALUES and not node.domain
            source = str(node.input[0]) if moves else ""
            if moves and self.is_float(source) and source not in weights:
                found[str(node.output[0])] = found.get(source, source)
        return found

    @property
    def weights(self) -> dict[str, Any]:
        """Initializers of the main graph by name."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    def is_float(self, tensor: str) -> bool:
        """Tell whether `tensor` is fp32, the only type that a precision mode rounds."""
        return self.types.get(tensor) == TensorProto.FLOAT

    def weight(self, name: str) -> Array:
        """Return the values of an initializer; big ones are read from disk as they are touched."""
        return self.values(self.weights[name])

    def values(self, tensor: Any) -> Array:
        """Return the values of an initializer of this workspace."""
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        return np.memmap(self.folder / _WEIGHTS, dtype=dtype, mode="r", offset=offset, shape=shape or (1,)).reshape(
            shape
        )

    def store(self, name: str, value: Array) -> Any:
        """Append an array to the file of weights and return the initializer that names it."""
        tensor = TensorProto()
        tensor.name, tensor.data_type = name, helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor.dims.extend(value.shape)
        if value.nbytes <= INLINE_BYTES:
            return numpy_helper.from_array(np.ascontiguousarray(value), name)
        self._append(tensor, np.ascontiguousarray(value).tobytes())
        return tensor

    @property
    def _convolves(self) -> bool:
        """Whether the runtime's blocked layouts gain more than its optimiser costs on graphs of thousands of nodes."""
        return any(node.op_type == "Conv" for node in self.graph.node)

    def session(self, model: onnx.ModelProto, *, optimise: bool = False) -> Any:
        """Open a session over `model`, whose weights are this folder's.

        Raises:
            GateError: The runtime cannot load it.
        """
        self._count += 1
        path = self.folder / f"probe{self._count}.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            return _ort.InferenceSession(
                str(path),
                session_options(self.threads, optimise=optimise or self._convolves),
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:
            raise GateError(
                f"onnxruntime cannot load the probe graph: {error}",
                hint="run `orchestrate coverage` on the model first",
            ) from error
        finally:
            path.unlink(missing_ok=True)

    def run(self, session: Any, names: list[str], feed: dict[str, Array]) -> list[Array]:
        """Run a session.

        Raises:
            GateError: The runtime fails on this input.
        """
        try:
            return session.run(names, feed)
        except Exception as error:
            raise GateError(f"onnxruntime failed: {error}", hint="the message names the node") from error

    def measure_shapes(self, feed: dict[str, Array]) -> None:
        """Learn the shape of every float tensor from one run; only shapes leave the graph."""
        names = [name for node in self.graph.node for name in node.output if self.is_float(name)]
        outputs = [helper.make_tensor_value_info(f"shape/{n}", TensorProto.INT64, None) for n in range(len(names))]
        shape_of = {name: entry.name for name, entry in zip(names, outputs, strict=True)}
        nodes: list[Any] = []
        for node in self.graph.node:
            nodes.append(node)
            nodes += [helper.make_node("Shape", [n], [shape_of[n]]) for n in node.output if n in shape_of]
        session = self.session(self.derived(nodes, outputs=outputs))
        found = self.run(session, [entry.name for entry in outputs], feed)
        self.shapes = {name: tuple(int(dim) for dim in shape) for name, shape in zip(names, found, strict=True)}
        self.shapes.update({tensor.name: tuple(tensor.dims) for tensor in self.graph.initializer})
        self.shapes.update({name: array.shape for name, array in feed.items()})

    def derived(
        self, nodes: Iterable[Any], *, initializers: Iterable[Any] = (), outputs: Iterable[Any] | None = None
    ) -> onnx.ModelProto:
        """Return a graph with this one's inputs and weights, other nodes and, where given, other outputs."""
        made = onnx.ModelProto()
        made.ir_version = self.model.ir_version
        made.opset_import.extend(self.model.opset_import)
        made.graph.name = self.graph.name
        made.graph.input.extend(self.graph.input)
        made.graph.initializer.extend(self.graph.initializer)
        made.graph.initializer.extend(initializers)
        made.graph.output.extend(self.graph.output if outputs is None else outputs)
        made.graph.node.extend(nodes)
        return made

    def _append(self, tensor: Any, data: Any) -> None:
        offset = -(-self.size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
        with (self.folder / _WEIGHTS).open("ab") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(data)
        self.size_bytes = offset + len(data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", _WEIGHTS), ("offset", str(offset)), ("length", str(len(data)))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value


def session_options(threads: int = 0, *, optimise: bool = False) -> Any:
    """Options that bound memory: the node order of the file is the order of execution, so each statistic frees its tensor.

    Args:
        threads: Inside one operator; 0 takes all cores.
        optimise: Let the runtime fuse; off for graphs whose every tensor is looked at, where it gains nothing.
    """
    options = _ort.SessionOptions()
    options.execution_order = _ort.ExecutionOrder.PRIORITY_BASED
    options.enable_mem_pattern = False
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the cores alone
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = _ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def open_workspace(path: Path, folder: Path, *, threads: int = 0) -> Workspace:
    """Read the model through the checks of `graph/read.py`, and move its weights into `folder`.

    Raises:
        GateError: A tensor cannot be read.
    """
    model = load_model(path, weights=False)
    space = Workspace(folder, model, threads=threads, unnamed=_name_nodes(model.graph))
    _lift_constants(model.graph)
    for tensor in model.graph.initializer:
        _move(space, tensor, path.parent)
    _find_types(space)
    return space


def _name_nodes(graph: Any) -> int:
    """Give nodes of the main graph that have no name, or another's, one of their own; return how many."""
    taken: set[str] = set()
    changed = 0
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}_unnamed"
            changed += 1
        taken.add(node.name)
    return changed


def _lift_constants(graph: Any) -> None:
    """Make initializers of big Constant nodes; small ones stay."""
    kept: list[Any] = []
    for node in graph.node:
        attribute = node.attribute[0] if node.op_type == "Constant" and len(node.attribute) == 1 else None
        if attribute is not None and attribute.name == "value" and attribute.t.ByteSize() > INLINE_BYTES:
            attribute.t.name = node.output[0]
            graph.initializer.append(attribute.t)
        else:
            kept.append(node)
    if len(kept) != len(graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(copies)


def _move(space: Workspace, tensor: Any, folder: Path) -> None:
    if tensor.data_location == TensorProto.EXTERNAL:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        length = int(fields["length"]) if "length" in fields else -1
        with (folder / fields["location"]).open("rb") as file:
            file.seek(int(fields.get("offset", 0)))
            data: Any = file.read(length)
        if len(data) <= INLINE_BYTES:
            tensor.ClearField("external_data")
            tensor.data_location, tensor.raw_data = TensorProto.DEFAULT, data
            return
    elif tensor.ByteSize() <= INLINE_BYTES or tensor.data_type == TensorProto.STRING:
        return
    else:
        data = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
        for kind in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(kind)
    space._append(tensor, data)  # pyright: ignore[reportPrivateUsage]


def _find_types(space: Workspace) -> None:
    """Infer element types; where inference stops, ask the runtime, which must know them all."""
    inferred = onnx.shape_inference.infer_shapes(space.model, data_prop=True)
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if value.type.WhichOneof("value") == "tensor_type":
            space.types[value.name] = value.type.tensor_type.elem_type
    space.types.update({tensor.name: tensor.data_type for tensor in space.graph.initializer})
    gaps = [name for node in space.graph.node for name in node.output if name and name not in space.types]
    if gaps:
        outputs = [helper.make_empty_tensor_value_info(name) for name in gaps]
        session = space.session(space.derived(space.graph.node, outputs=outputs))
        for entry in session.get_outputs():
            if entry.type in _ORT_TYPES:
                space.types[entry.name] = _ORT_TYPES[entry.type]


_ORT_TYPES: Final = {
    "tensor(float)": TensorProto.FLOAT, "tensor(float16)": TensorProto.FLOAT16, "tensor(double)": TensorProto.DOUBLE,
    "tensor(int64)": TensorProto.INT64, "tensor(int32)": TensorProto.INT32, "tensor(bool)": TensorProto.BOOL,
    "tensor(int8)": TensorProto.INT8, "tensor(uint8)": TensorProto.UINT8, "tensor(bfloat16)": TensorProto.BFLOAT16,
}  # fmt: skip
