"""A torch package (weights, source, `build.json`) on torch_npu, CUDA or a CPU. A device works while the next batch is copied in."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from orchestrator.core.errors import DeviceError, ServingError, UserCodeError
from orchestrator.serving.protocol.tensors import Tensor, TensorSpec, from_array, numpy_dtype
from orchestrator.serving.runtimes.api import REHEARSAL, Bucket, ExecutionFailed, InputRejected, Job, Session
from orchestrator.serving.runtimes.sizes import Fit, Sizes, cut, oip_datatype, padded, sizes_of

if TYPE_CHECKING:
    from types import ModuleType

BUILD_JSON: Final = "build.json"
_WEIGHTS: Final = "model.safetensors"
_THREADS: Final = 4
_HEADROOM: Final = 1.5
"""Of the weights: what loading takes at least, activations included."""
_RUN_ERRORS: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError,
    UserCodeError,
)  # fmt: skip
"""What a module raises on inputs that it cannot take."""


def load(job: Job) -> Session:
    """Build the network from the package's own source, load the weights and move it to the device.

    Raises:
        DeviceError: No torch, no torch_npu, no device, another one, or not enough memory.
        ServingError: The package is not whole.
        UserCodeError: Its source does not build the network.
    """
    how = _how(job.folder)
    if how["device"] == "npu" and job.device != how["soc"]:
        raise DeviceError(
            f"the package was made for {how['soc']} and cannot serve as {job.device!r}",
            hint="serve the target's rehearsal in a rehearsal pool, or compile for the pool's SoC",
        )
    # Before the first import of torch, which reads them once. Elsewhere torch_npu must not load itself.
    os.environ.update(cast("Mapping[str, str]", how["environment"]))
    sys.dont_write_bytecode = True  # the package is read-only and its files are counted
    torch = _import("torch", "pip install torch")
    accelerator = _accelerator(torch, job.device)
    _check_memory(accelerator, job.folder / _WEIGHTS)
    from orchestrator.graph.forward import bind
    from orchestrator.graph.torch_model import build, load_checkpoint

    torch.set_num_threads(min(_THREADS, os.cpu_count() or 1))
    module = build(str(how["factory"]), job.folder / str(how["source"])).eval()
    load_checkpoint(module, job.folder)
    place = "cpu" if accelerator is None else f"{accelerator.__name__.rpartition('.')[2]}:0"
    if accelerator is not None:
        _exact(accelerator, how)
    module = module.to(device=place, dtype=getattr(torch, how["module_dtype"]))
    inputs, outputs = (_specs(how[key]) for key in ("inputs", "outputs"))
    gears = job.variant.gears if job.variant is not None else ()
    sizes = sizes_of(inputs, outputs, gears, _fixed(job))
    arguments = bind(module, [spec.name for spec in inputs]).arguments

    def forward(tensors: Mapping[str, Any]) -> Any:
        args, kwargs = arguments(tensors)
        with torch.inference_mode(), _autocast(torch, place, how):
            return module(*args, **kwargs)

    return TorchSession(torch, accelerator, place, forward, sizes, job.device, getattr(torch, how["module_dtype"]))


@dataclass(frozen=True, slots=True)
class _Queued:
    """A batch on its way through the device; `event` is None on a CPU."""

    outputs: Mapping[str, Any]
    fit: Fit
    event: Any


class TorchSession:
    """See `Session`. On a device a batch is queued by `submit`; a CPU has nothing to overlap, so it works in `collect`."""

    def __init__(
        self,
        torch: Any,
        accelerator: Any,
        place: str,
        forward: Callable[[Mapping[str, Any]], Any],
        sizes: Sizes,
        device: str,
        dtype: Any,
    ) -> None:
        self._torch, self._accelerator, self._place = torch, accelerator, place
        self._forward, self._sizes, self._dtype = forward, sizes, dtype
        self.device = device
        self.inputs, self.outputs = sizes.inputs, sizes.outputs
        self.max_batch = sizes.max_batch
        self.buckets: tuple[Bucket, ...] = sizes.buckets
        self.depth = 2
        self._running: dict[int, Sequence[Tensor] | _Queued | InputRejected | ExecutionFailed] = {}
        self._ticket = 0

    def submit(self, inputs: Sequence[Tensor]) -> int:
        """Queue the batch on the device, or keep it for `collect`."""
        self._ticket += 1
        if self._accelerator is None:
            self._running[self._ticket] = inputs
        else:
            try:
                self._running[self._ticket] = self._start(inputs)
            except (InputRejected, ExecutionFailed) as error:
                self._running[self._ticket] = error
        return self._ticket

    def done(self, ticket: int, wait_s: float) -> bool:  # noqa: ARG002  the event is asked, the caller waits
        """Ask the event behind the batch."""
        found = self._running[ticket]
        return not isinstance(found, _Queued) or bool(found.event.query())

    def collect(self, ticket: int) -> list[Tensor]:
        """Copy the outputs to the host."""
        found = self._running.pop(ticket)
        if isinstance(found, InputRejected | ExecutionFailed):
            raise found
        queued = found if isinstance(found, _Queued) else self._start(found)
        try:
            if queued.event is not None:
                queued.event.synchronize()
            return [cut(self._tensor(spec, queued.outputs[spec.name]), queued.fit) for spec in self.outputs]
        except RuntimeError as error:  # kernels fail late, and then everything after them does
            raise DeviceError(f"{self.device} failed: {_line(error)}") from error

    def _start(self, inputs: Sequence[Tensor]) -> _Queued:
        from orchestrator.graph.forward import named_outputs

        fit = self._sizes.fit(inputs)
        try:
            tensors = {tensor.name: self._given(padded(tensor, fit)) for tensor in inputs}
            outputs = named_outputs(self._forward(tensors), [spec.name for spec in self.outputs])
        except IndexError as error:
            raise InputRejected(f"the model refuses this input: {_line(error)}") from error
        except _RUN_ERRORS as error:
            raise ExecutionFailed(f"the model failed on this input: {_line(error)}") from error
        event = None
        if self._accelerator is not None:
            event = self._accelerator.Event()
            event.record()
        return _Queued(outputs, fit, event)

    def _given(self, tensor: Tensor) -> Any:
        made = self._torch.from_numpy(tensor.array().copy())  # torch wants memory that it may write to
        made = made.to(self._dtype) if made.is_floating_point() else made
        return made.to(self._place, non_blocking=True)

    def _tensor(self, spec: TensorSpec, value: Any) -> Tensor:
        found = value.detach().to("cpu")
        found = found.float() if found.dtype == self._torch.bfloat16 else found  # numpy has no bfloat16
        return from_array(spec.name, found.numpy().astype(numpy_dtype(spec.datatype), copy=False))

    def close(self) -> None:
        """Let go of the network."""
        self._forward = _closed
        self._running.clear()
        if self._accelerator is not None:
            self._accelerator.empty_cache()


def _closed(_tensors: Mapping[str, Any]) -> Any:
    raise ExecutionFailed("the session is closed")


def _how(folder: Path) -> dict[str, Any]:
    try:
        how = json.loads((folder / BUILD_JSON).read_bytes())
    except (OSError, ValueError) as error:
        raise ServingError(f"no readable {BUILD_JSON}: {error}", place=str(folder), hint="compile again") from error
    if how.get("schema") != 1:
        raise ServingError(f"{BUILD_JSON} has schema {how.get('schema')!r}, this program reads 1", place=str(folder))
    return how


def _import(name: str, fix: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise DeviceError(f"{name} cannot be imported here: {error}", hint=fix) from error


def _accelerator(torch: ModuleType, device: str) -> Any:
    """Return `torch.npu` or `torch.cuda` where the first device is the one that is wanted; None for a CPU."""
    if device == REHEARSAL:
        return None
    npu = device.startswith("Ascend")
    if npu:
        _import("torch_npu", "install the torch_npu that belongs to this torch and CANN; see `orchestrate doctor`")
    backend: Any = getattr(torch, "npu" if npu else "cuda")
    found = str(backend.get_device_name(0)) if backend.is_available() else "none"
    if found != device:
        raise DeviceError(
            f"this slot is {device!r}, torch's first {'NPU' if npu else 'CUDA device'} is {found!r}",
            hint="correct the pool's `soc`, or give the slot that device",
        )
    return backend


def _check_memory(accelerator: Any, weights: Path) -> None:
    if accelerator is None:
        return
    free, total = (int(size) for size in accelerator.mem_get_info())
    needed = int(weights.stat().st_size * _HEADROOM)
    if free < needed:
        raise DeviceError(
            f"the model needs {needed >> 20} MiB on the device, {free >> 20} of {total >> 20} MiB are free",
            hint="delete an endpoint of the pool, or give the pool another device",
        )


def _exact(accelerator: Any, how: Mapping[str, Any]) -> None:
    """Switch off what makes float32 less than it says: HF32 on an NPU."""
    for part, allowed in dict(how["allow_hf32"]).items():
        getattr(accelerator, part).allow_hf32 = bool(allowed)
    if how["jit_compile"] is not None:
        accelerator.set_compile_mode(jit_compile=bool(how["jit_compile"]))


def _autocast(torch: Any, place: str, how: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    if not how["autocast"]:
        return contextlib.nullcontext()
    return torch.autocast(place.partition(":")[0], dtype=getattr(torch, how["autocast"]))


def _specs(declared: Mapping[str, Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, oip_datatype(str(row.get("dtype", "float32")), name), tuple(row.get("shape", ())))
        for name, row in declared.items()
    )


def _fixed(job: Job) -> dict[str, int]:
    shapes = dict(job.variant.facts.get("shapes") or {}) if job.variant is not None else {}
    return dict(shapes.get("fixed") or {})


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
