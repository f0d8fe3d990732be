"""One form for every exported graph: the same weights and code give the same bytes, on any machine and in any folder.

Nodes get stable, unique, non-empty names, because keep-lists and error messages of the vendor's compiler name nodes.
Of the exporter's notes two stay, per node: `source` (relative `file:line` of the user's code) and `scope` (module path).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import onnx
import onnx.inliner

from orchestrator.graph.spec import TensorSpec

SOURCE_KEY: Final = "source"
SCOPE_KEY: Final = "scope"

_FRAME: Final = re.compile(r'File "([^"]+)", line (\d+)')
_LIBRARY: Final = re.compile(r"(^|/)(site-packages|dist-packages|lib/python3[^/]*|torch)/|^<")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_./-]+")
_STACK_KEY: Final = "pkg.torch.onnx.stack_trace"
_SCOPES_KEY: Final = "pkg.torch.onnx.name_scopes"


def canonicalise(
    model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], source_root: Path | None
) -> onnx.ModelProto:
    """Return the model in its one form; its inputs and outputs must be those of the recipe, in any order.

    Args:
        model: What an exporter wrote; may be changed in place.
        inputs: The recipe's inputs; their shapes replace the exporter's.
        outputs: The recipe's outputs; likewise.
        source_root: Folder of the user's code; source lines are relative to it.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _strip(model)
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    taken: set[str] = set()
    domains: set[str] = set()
    for graph in _graphs(model.graph):
        _strip_values(graph)
        for node in graph.node:
            domains.add(node.domain)
            _annotate(node, source_root)
            node.name = _unique(node, taken)
    _reorder(model.graph.input, inputs)
    _reorder(model.graph.output, outputs)
    used = [entry for entry in model.opset_import if entry.domain in domains | {""}]
    versions = sorted((entry.domain, entry.version) for entry in used)
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions)
    return model


def publish_outputs(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Give tensors their public names, in subgraphs too; an inner tensor that has such a name steps aside.

    Args:
        model: Changed in place.
        names: Private name -> public name; those that are no outputs are left out.
    """
    private = {value.name for value in model.graph.output}
    names = {name: public for name, public in names.items() if name in private}
    inputs = {value.name for value in model.graph.input}
    aside = {public: f"{public}/inner" for public in names.values() if public not in inputs}
    renamed = {**aside, **names}
    for graph in _graphs(model.graph):
        for value in (*graph.output, *graph.value_info, *graph.initializer):
            value.name = renamed.get(value.name, value.name)
        for node in graph.node:
            for values in (node.input, node.output):
                values[:] = [renamed.get(name, name) for name in values]


def _graphs(graph: Any) -> Iterator[Any]:
    """Yield the graph and all graphs inside its nodes, in file order."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _strip(model: onnx.ModelProto) -> None:
    model.doc_string = ""
    model.domain = ""
    model.model_version = 0
    model.graph.name = "main"


def _strip_values(graph: Any) -> None:
    """Remove notes of tensors, and shapes of weights, which the weights themselves state."""
    graph.doc_string = ""
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in weights]
    copies = [_copy(value) for value in sorted(kept, key=lambda v: v.name)]
    del graph.value_info[:]
    graph.value_info.extend(copies)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]


def _copy(value: Any) -> Any:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    return copy


def _annotate(node: Any, source_root: Path | None) -> None:
    notes = {entry.key: entry.value for entry in node.metadata_props}
    trace, scopes = notes.get(_STACK_KEY, "") or node.doc_string, notes.get(_SCOPES_KEY, "")
    node.doc_string = ""
    del node.metadata_props[:]
    for key, value in ((SOURCE_KEY, _source(trace, source_root)), (SCOPE_KEY, _scope(scopes))):
        if value:
            node.metadata_props.add(key=key, value=value)


def _source(trace: str, source_root: Path | None) -> str:
    """Return `file:line` of the innermost frame that is the user's."""
    for name, line in reversed(_FRAME.findall(trace)):
        path = Path(name)
        if source_root is not None and path.is_relative_to(source_root):
            return f"{path.relative_to(source_root).as_posix()}:{line}"
        if not _LIBRARY.search(name):
            return f"{path.name}:{line}"
    return ""


def _scope(scopes: str) -> str:
    """Return the module path, e.g. `encoder.layer.3`; the last entry of the exporter's list is the operator itself."""
    try:
        parts = cast("list[object]", ast.literal_eval(scopes)) if scopes.startswith("[") else []
    except (ValueError, SyntaxError):
        return ""
    named = [str(part) for part in parts[:-1] if part]
    return named[-1] if named else ""


def _unique(node: Any, taken: set[str]) -> str:
    stem = _UNSAFE.sub("_", node.name).strip("/") or f"node_{node.op_type}"
    name, number = stem, 0
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return name


def _reorder(values: Any, expected: Sequence[TensorSpec]) -> None:
    """Put inputs or outputs into the recipe's order, with the recipe's dimensions."""
    by_name = {value.name: value for value in values}
    ordered = [_copy(by_name[spec.name]) for spec in expected]
    for value, spec in zip(ordered, expected, strict=True):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for dim in spec.shape:
            shape.dim.add(**({"dim_param": dim} if isinstance(dim, str) else {"dim_value": dim}))
    del values[:]
    values.extend(ordered)
