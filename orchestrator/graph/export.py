"""PyTorch to ONNX: at one opset, with the recipe's names and shapes, and the same bytes every time.

The dynamo exporter is asked for opset 18, which it writes natively; what each target's toolchain reads is made of that by
`prepare.py`, since the exporter's own down-conversion gives up without a word. What came out is read back, never assumed.
Where dynamo fails, or gives what does not fit the recipe, the TorchScript exporter is asked, and read back too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx
import torch

from orchestrator.ascend.toolchains import PREFERRED_OPSET
from orchestrator.core.errors import GateError, OrchestratorError
from orchestrator.graph.canonical import canonicalise, publish_outputs
from orchestrator.graph.examples import example_inputs, resized
from orchestrator.graph.exporters import Exported, private_name, with_dynamo, with_torchscript
from orchestrator.graph.forward import evaluating, forward, tuple_outputs
from orchestrator.graph.parity import compare
from orchestrator.graph.read import MODEL_ONNX, Exporter, GraphInfo, inspect_onnx, write_onnx_json
from orchestrator.graph.run_onnx import OnnxModel
from orchestrator.graph.spec import TensorSpec, check_arrays
from orchestrator.graph.verdict import EXPORT_SQNR_DB

Array = np.ndarray[Any, Any]
_onnx = cast("Any", onnx)  # its PathLike is untyped

INLINE_LIMIT_BYTES: Final = 1 << 30
"""Weights up to here lie inside the file; bigger ones in `model.onnx.data` (protobuf ends at 2 GiB)."""

_EXTERNAL_NAME: Final = "model.onnx.data"
_EXTERNAL_FROM_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What came out.

    Attributes:
        tried: What was tried before and why it was not taken.
        worst_sqnr_db: Output -> SQNR against torch on the example; synthetic inputs, so a sign and no verdict.
        warnings: For people.
    """

    opset: int
    exporter: Exporter
    ir_version: int
    node_count: int
    tried: tuple[str, ...]
    worst_sqnr_db: Mapping[str, float]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the facts, JSON-ready."""
        return {
            "opset": self.opset,
            "exporter": self.exporter,
            "ir_version": self.ir_version,
            "node_count": self.node_count,
            "tried": list(self.tried),
            "worst_sqnr_db": dict(self.worst_sqnr_db),
            "warnings": list(self.warnings),
        }


_LABELS: Final = {with_dynamo: "dynamo", with_torchscript: "torchscript"}


@dataclass(frozen=True, slots=True)
class _Job:
    module: torch.nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: Mapping[str, Array]
    source_root: Path | None
    inline_limit_bytes: int


def export_onnx(
    module: torch.nn.Module,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    example: Mapping[str, Array],
    out: Path,
    opset: int = PREFERRED_OPSET,
    source_root: Path | None = None,
    inline_limit_bytes: int = INLINE_LIMIT_BYTES,
) -> ExportInfo:
    """Write `out/model.onnx` and `out/onnx.json`.

    Args:
        module: On the CPU; its mode is kept.
        inputs: The recipe's inputs; named dimensions stay dynamic.
        outputs: The recipe's outputs.
        example: One batch of inputs; real samples or `example_inputs`.
        out: A folder; made where absent.
        opset: The opset that the file shall have; every target's own is made from it later.
        source_root: Folder of the user's code, for source lines.
        inline_limit_bytes: Weights above this go to a file beside the model.

    Raises:
        UserCodeError: The module fails on the example.
        GateError: No exporter gives a graph of that opset that fits the recipe; lists what each gave.
    """
    job = _Job(module, tuple(inputs), tuple(outputs), _widened(inputs, example), source_root, inline_limit_bytes)
    tried: list[str] = []
    with evaluating(module):
        _check_module(job)
        for exporter in (with_dynamo, with_torchscript):
            try:
                with tempfile.TemporaryDirectory(prefix="orchestrate-export-") as folder:
                    with tuple_outputs(module, _names(outputs)):
                        exported = exporter(
                            module, job.inputs, job.outputs, job.example, opset, Path(folder) / MODEL_ONNX
                        )
                    info = _finish(job, exported, out)
                return _checked(job, info, exported, tuple(tried), out)
            except GateError as error:
                tried.append(f"{_LABELS[exporter]}: {error.message}")
                (out / MODEL_ONNX).unlink(missing_ok=True)
    raise GateError(
        f"no exporter gave an ONNX graph of opset {opset}: " + "; ".join(tried),
        hint="change what the messages name in the module",
        details={"tried": tried, "opset": opset},
    )


def _names(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs]


def _widened(inputs: Sequence[TensorSpec], example: Mapping[str, Array]) -> dict[str, Array]:
    """Repeat samples so that every named dimension has at least 2: exporters take a 1 for a constant."""
    sizes = check_arrays(inputs, example, "the example input")
    return resized(inputs, example, {name: max(2, size) for name, size in sizes.items()})


def _check_module(job: _Job) -> None:
    clash = set(_names(job.inputs)) & set(_names(job.outputs))
    if clash:
        raise GateError(f"{sorted(clash)} are inputs and outputs", hint="give outputs names of their own")
    found = forward(job.module, job.example, _names(job.outputs))
    check_arrays((*job.inputs, *job.outputs), {**job.example, **found}, "the module")


def _finish(job: _Job, exported: Exported, out: Path) -> GraphInfo:
    """Bring the raw export into its one form under `out`, and check that it is what the recipe asks."""
    if exported.problem:
        raise GateError(exported.problem)
    model = cast("onnx.ModelProto", _onnx.load(exported.path))
    publish_outputs(model, {private_name(name): name for name in _names(job.outputs)})
    version = next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 0)
    if version != exported.opset:
        raise GateError(f"wrote opset {version} though {exported.opset} was asked")
    for what, specs, values in (
        ("inputs", job.inputs, model.graph.input),
        ("outputs", job.outputs, model.graph.output),
    ):
        found = {value.name: value.type.tensor_type.shape for value in values}
        if set(found) != set(_names(specs)):
            raise GateError(f"the graph has {what} {sorted(found)}, the recipe {sorted(_names(specs))}")
        for spec in specs:
            _check_dims(spec, found[spec.name])
    model = canonicalise(model, job.inputs, job.outputs, job.source_root)
    out.mkdir(parents=True, exist_ok=True)
    _save(model, out / MODEL_ONNX, job.inline_limit_bytes)
    return inspect_onnx(out / MODEL_ONNX)


def _check_dims(spec: TensorSpec, shape: Any) -> None:
    if len(shape.dim) != len(spec.shape):
        raise GateError(f"{spec.name!r} has rank {len(shape.dim)} in the graph, {len(spec.shape)} in the recipe")
    for axis, (dim, wanted) in enumerate(zip(shape.dim, spec.shape, strict=True)):
        fixed = int(dim.dim_value) if dim.HasField("dim_value") else None
        if fixed is not None and fixed != wanted:
            raise GateError(f"axis {axis} of {spec.name!r} became the constant {fixed}, the recipe says {wanted!r}")


def _save(model: onnx.ModelProto, path: Path, inline_limit_bytes: int) -> None:
    path.unlink(missing_ok=True)
    (path.parent / _EXTERNAL_NAME).unlink(missing_ok=True)  # onnx would append to it
    if model.ByteSize() <= inline_limit_bytes:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return
    _onnx.save_model(
        model, path, save_as_external_data=True, all_tensors_to_one_file=True,
        location=_EXTERNAL_NAME, size_threshold=_EXTERNAL_FROM_BYTES,
    )  # fmt: skip


def _checked(job: _Job, info: GraphInfo, exported: Exported, tried: tuple[str, ...], out: Path) -> ExportInfo:
    """Run the graph where the example is and at another batch size: a size that became a constant shows only so."""
    write_onnx_json(out, info, exported.exporter)
    model, worst = OnnxModel(info.path), dict[str, float]()
    for inputs in _two_sizes(job):
        expected = forward(job.module, inputs, _names(job.outputs))
        try:
            found = model(inputs)
            check_arrays((*job.inputs, *job.outputs), {**inputs, **found}, "the exported graph")
        except OrchestratorError as error:
            raise GateError(
                f"the exported graph does not take {_shapes(inputs)}: {error.message}",
                hint="a size is a constant somewhere in the module; use x.shape instead of numbers",
            ) from error
        for name, metrics in compare(expected, found).items():
            value = -400.0 if metrics.problem or metrics.nonfinite_mismatched else metrics.worst_sqnr_db
            worst[name] = min(worst.get(name, value), value)
    low = {name: value for name, value in worst.items() if value < EXPORT_SQNR_DB}
    warnings = [f"{name}: {value:.1f} dB against torch on the example" for name, value in low.items()]
    return ExportInfo(
        info.opset,
        exported.exporter,
        info.ir_version,
        info.node_count,
        tried,
        worst,
        (*exported.warnings, *warnings),
    )


def _two_sizes(job: _Job) -> list[Mapping[str, Array]]:
    firsts = {spec.dynamic[0] for spec in job.inputs if 0 in spec.dynamic}
    if not firsts:
        return [job.example]
    sizes = check_arrays(job.inputs, job.example, "the example input")
    larger = {name: size + (1 if name in firsts else 0) for name, size in sizes.items()}
    return [job.example, resized(job.inputs, job.example, larger)]


def _shapes(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"{name}{list(array.shape)}" for name, array in arrays.items())


__all__ = ["ExportInfo", "example_inputs", "export_onnx", "resized"]
