"""An ONNX file as an onnx-ir model with inferred types, and back to the same bytes every time.

Weights that lie in files beside the model are never read: they stay external, and the files are carried along.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final, cast

import onnx
import onnx_ir as ir

from orchestrator.graph.read import inferred, load_model
from orchestrator.graph.rewrites.build import graphs

INLINE_LIMIT_BYTES: Final = 1 << 30
"""New weights up to here lie inside the file; bigger ones in a file beside it (protobuf ends at 2 GiB)."""

_external = cast("Any", ir.external_data)  # its PathLike is untyped
_EXTERNAL_NAME: Final = "rewritten.data"
_EXTERNAL_FROM_BYTES: Final = 1024


def read_ir(path: Path) -> ir.Model:
    """Return the checked model with a type and shape on every value where one can be inferred.

    Raises:
        GateError: The file is refused.
    """
    model = ir.from_proto(load_model(path, weights=False))
    _external.set_base_dir(model.graph, path.parent)
    infer(model, path)
    return model


def infer(model: ir.Model, path: Path) -> None:
    """Take types and shapes over from what inference says of the same graph in the file at `path`."""
    known = list(graphs(ir.from_proto(inferred(path)).graph))
    for mine, theirs in zip(graphs(model.graph), known, strict=True):
        by_name = {value.name: value for node in theirs for value in node.outputs}
        by_name.update({value.name: value for value in theirs.inputs})
        for value in [*mine.inputs, *(value for node in mine for value in node.outputs)]:
            found = by_name.get(value.name)
            if found is None:
                continue
            if value.type is None:
                value.type = found.type
            if found.shape is not None and (value.shape is None or not _fixed(value.shape)):
                value.shape = found.shape


def _fixed(shape: ir.Shape) -> bool:
    return all(isinstance(dim, int) for dim in shape)


def write_ir(model: ir.Model, path: Path, data_from: Path) -> None:
    """Write the model; external files that it still names are copied from the folder `data_from`.

    Args:
        model: What to write; its values' inferred types are written too.
        path: Where; the folder exists.
        data_from: Folder of the external files of the model that was read.
    """
    proto: Any = ir.to_proto(model)
    names = {
        entry.value for tensor in _tensors(proto.graph) for entry in tensor.external_data if entry.key == "location"
    }
    for name in sorted(names):
        if not (path.parent / name).exists():
            shutil.copyfile(data_from / name, path.parent / name)
    _spill(proto, path.parent)
    path.write_bytes(cast("bytes", proto.SerializeToString(deterministic=True)))


def _tensors(graph: Any) -> list[Any]:
    """Return all tensors, in file order, in subgraphs too."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                found.append(attribute.t)
            found.extend(attribute.tensors)
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                found.extend(_tensors(inner))
    return found


def _spill(proto: Any, folder: Path) -> None:
    """Move big tensors out of the file when together they would not fit into it."""
    inline = [tensor for tensor in _tensors(proto.graph) if not tensor.external_data]
    if sum(len(tensor.raw_data) for tensor in inline) <= INLINE_LIMIT_BYTES:
        return
    offset = 0
    with (folder / _EXTERNAL_NAME).open("wb") as file:
        for tensor in inline:
            size = len(tensor.raw_data)
            if size < _EXTERNAL_FROM_BYTES:
                continue
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", _EXTERNAL_NAME), ("offset", str(offset)), ("length", str(size))):
                tensor.external_data.add(key=key, value=value)
            offset += size
