"""The two exporters of torch, each called so that it is quiet and its failures come back as a sentence."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import torch

from orchestrator.graph.forward import bind
from orchestrator.graph.spec import TensorSpec

Array = np.ndarray[Any, Any]
_torch = cast("Any", torch)  # partly untyped

_FAILURES: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What torch's exporters raise on modules that they cannot take; its own errors are RuntimeErrors."""

_LOUD: Final = ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")
_INLINE_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Exported:
    """A raw export at `path`, or the `problem` why there is none; `opset` is what was asked."""

    exporter: Literal["dynamo", "torchscript"]
    opset: int
    path: Path
    problem: str = ""
    warnings: tuple[str, ...] = ()


def private_name(output: str) -> str:
    """Return what an output is called while dynamo exports: it names inner tensors after operators (`mean`, `relu`), and
    would give an output of the recipe that has such a name to two tensors.
    """
    return f"output::{output}"


def with_dynamo(
    module: torch.nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    example: Mapping[str, Array],
    opset: int,
    path: Path,
) -> Exported:
    """Export by `torch.export`; outputs have private names, which `canonical.publish_outputs` makes those of the recipe."""
    binding = bind(module, [spec.name for spec in inputs])
    dims = {name: torch.export.Dim(name) for spec in inputs for name in spec.dynamic.values()}
    shapes = {spec.name: {axis: dims[name] for axis, name in spec.dynamic.items()} for spec in inputs}
    args, kwargs = binding.arguments(_tensors(example))
    dynamic = (
        {name: shapes[name] for name in binding.names} if kwargs else tuple(shapes[name] for name in binding.names)
    )
    try:
        with _quiet():
            _torch.onnx.export(
                module, args, path, kwargs=kwargs, dynamo=True, opset_version=opset, verbose=False,
                input_names=list(binding.names), output_names=[private_name(spec.name) for spec in outputs],
                dynamic_shapes=dynamic, external_data=_weight_bytes(module) > _INLINE_BYTES,
            )  # fmt: skip
    except _FAILURES as error:
        return Exported("dynamo", opset, path, problem=_sentence(error))
    return Exported("dynamo", opset, path)


def with_torchscript(
    module: torch.nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    example: Mapping[str, Array],
    opset: int,
    path: Path,
) -> Exported:
    """Export by tracing; what depends on values becomes a constant, so the result is checked at two sizes."""
    binding = bind(module, [spec.name for spec in inputs])
    args, kwargs = binding.arguments(_tensors(example))
    axes = {spec.name: spec.dynamic for spec in (*inputs, *outputs) if spec.dynamic}
    try:
        with _quiet() as caught:
            _torch.onnx.export(
                module, args, path, kwargs=kwargs or None, dynamo=False, opset_version=opset, verbose=False,
                input_names=list(binding.names), output_names=[spec.name for spec in outputs], dynamic_axes=axes,
            )  # fmt: skip
    except _FAILURES as error:
        return Exported("torchscript", opset, path, problem=_sentence(error))
    traced = dict.fromkeys(str(item.message).splitlines()[0] for item in caught if _is_tracer(item))
    return Exported("torchscript", opset, path, warnings=tuple(traced))


def _is_tracer(item: warnings.WarningMessage) -> bool:
    return issubclass(item.category, _torch.jit.TracerWarning)


def _tensors(example: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    return {name: _torch.from_numpy(np.ascontiguousarray(value)) for name, value in example.items()}


def _weight_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _sentence(error: BaseException) -> str:
    """Return the first line that says something, of the deepest cause; torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:400] if lines else 'no message'}"


@contextmanager
def _quiet() -> Generator[list[warnings.WarningMessage]]:
    """Silence the exporters' loggers and collect their warnings."""
    # On failure the TorchScript exporter prints whole graphs from C++, with no switch that works: keep stdout clean.
    set_stream = getattr(_torch._C, "_jit_set_onnx_log_output_stream", None)
    if set_stream is not None:
        set_stream("stderr")
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
