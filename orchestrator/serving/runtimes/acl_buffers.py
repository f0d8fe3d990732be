"""The device buffers of one batch under way: made once, filled and emptied again and again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from orchestrator.core.errors import ServingError
from orchestrator.serving.protocol.tensors import ITEM_BYTES, Tensor, TensorSpec, count
from orchestrator.serving.runtimes.acl_device import AclDevice
from orchestrator.serving.runtimes.sizes import Fit, Sizes

Mode = Literal["static", "batch", "dims", "ranges"]
GEAR_INPUT: Final = "ascend_mbatch_shape_data"
"""The extra input of a model with gears; ACL fills it."""


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of the loaded model: its tensor, its ACL type, layout and most bytes."""

    spec: TensorSpec
    acl_type: int
    acl_format: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The loaded model.

    Attributes:
        gear_index: Input that ACL keeps the gear in; -1 without gears.
        gear_bytes: Its size.
        varies: The first input whose axis 0 has gears.
        held_bytes: Of the device: the model, and its sets of buffers.
    """

    model: int
    mode: Mode
    inputs: Sequence[Port]
    outputs: Sequence[Port]
    gear_index: int
    gear_bytes: int
    sizes: Sizes
    varies: int = 0
    held_bytes: int = 0


class Buffers:
    """One set of input and output memory, its datasets and the event that says that the batch is done."""

    def __init__(self, device: AclDevice, loaded: Loaded) -> None:
        self._device, self._loaded = device, loaded
        self._in = [device.malloc(port.size_bytes) for port in loaded.inputs]
        self._out = [device.malloc(port.size_bytes) for port in loaded.outputs]
        self._inputs = device.own_got("mdl.create_dataset", "mdl.destroy_dataset")
        self._outputs = device.own_got("mdl.create_dataset", "mdl.destroy_dataset")
        sizes = [port.size_bytes for port in loaded.inputs]
        pointers = list(self._in)
        if loaded.gear_index >= 0:
            pointers.insert(loaded.gear_index, device.malloc(loaded.gear_bytes))
            sizes.insert(loaded.gear_index, loaded.gear_bytes)
        self._data(self._inputs, pointers, sizes)
        self._data(self._outputs, self._out, [port.size_bytes for port in loaded.outputs])
        (self.event,) = device.own("rt.create_event", "rt.destroy_event")
        self._descs: list[int] = []
        device.at_close(lambda: self._drop(self._descs))
        self._fit = Fit({}, 1, 1)
        self.copied_ns = 0

    def _data(self, dataset: int, pointers: Sequence[int], sizes: Sequence[int]) -> None:
        for pointer, size in zip(pointers, sizes, strict=True):
            buffer = self._device.own_got("create_data_buffer", "destroy_data_buffer", pointer, max(1, size))
            self._device.call("mdl.add_dataset_buffer", dataset, buffer)

    def start(self, inputs: Sequence[Tensor], fit: Fit) -> None:
        """Copy in, choose the gear, and queue the model; returns before the device is done.

        Raises:
            ExecutionFailed: ACL refuses.
            DeviceError: The device is broken.
        """
        device, loaded = self._device, self._loaded
        self._fit = fit
        begun = time.perf_counter_ns()
        for tensor, port, pointer in zip(inputs, loaded.inputs, self._in, strict=True):
            self._copy_in(tensor, port, pointer)
        self.copied_ns = time.perf_counter_ns() - begun
        if loaded.mode == "ranges":
            self._describe([loaded.sizes.shape(spec, fit.sizes) for spec in loaded.sizes.named])
        elif loaded.mode == "batch":
            first = loaded.sizes.shape(loaded.sizes.named[loaded.varies], fit.sizes)[0]
            device.call("mdl.set_dynamic_batch_size", loaded.model, self._inputs, loaded.gear_index, first)
        elif loaded.mode == "dims":
            dims = [size for spec in loaded.sizes.named for size in loaded.sizes.shape(spec, fit.sizes)]
            wanted = {"name": "", "dimCount": len(dims), "dims": dims}
            device.call("mdl.set_input_dynamic_dims", loaded.model, self._inputs, loaded.gear_index, wanted)
        device.call("mdl.execute_async", loaded.model, self._inputs, self._outputs, device.stream)
        device.call("rt.record_event", self.event, device.stream)

    def _copy_in(self, tensor: Tensor, port: Port, pointer: int) -> None:
        """Copy the rows and clear those of the padding."""
        device = self._device
        size = len(tensor.data)
        used = size // self._fit.rows * self._fit.batch if self._fit.rows else size
        if size:
            array = np.frombuffer(tensor.data, np.uint8)  # its address, whether it may be written or not
            device.call("rt.memcpy", pointer, port.size_bytes, array.ctypes.data, size, device.to_device)
        if used > size:
            device.call("rt.memset", pointer + size, port.size_bytes - size, 0, used - size)

    def _describe(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Tell a model with ranges what it gets; the description before it lives until the new one is set."""
        device, before = self._device, self._descs
        self._descs = []
        try:
            for place, (port, shape) in enumerate(zip(self._loaded.inputs, shapes, strict=True)):
                self._descs.append(device.get("create_tensor_desc", port.acl_type, list(shape), port.acl_format))
                device.call("mdl.set_dataset_tensor_desc", self._inputs, self._descs[-1], place)
        finally:
            self._drop(before)

    def _drop(self, descs: Sequence[int]) -> None:
        for desc in descs:
            self._device.get("destroy_tensor_desc", desc)

    def finish(self) -> list[Tensor]:
        """Wait, copy out and cut the padding off.

        Raises:
            ExecutionFailed: The model failed.
            DeviceError: The device is broken.
        """
        device, loaded, fit = self._device, self._loaded, self._fit
        device.call("rt.synchronize_event", self.event)
        begun = time.perf_counter_ns()
        found: list[Tensor] = []
        for port, pointer in zip(loaded.outputs, self._out, strict=True):
            full = loaded.sizes.shape(port.spec, fit.sizes)
            batched = bool(loaded.sizes.batch)
            shape = (fit.rows, *full[1:]) if batched else full
            size = count(shape) * ITEM_BYTES[port.spec.datatype]
            array = np.empty(size, np.uint8)
            if size:
                device.call("rt.memcpy", array.ctypes.data, size, pointer, size, device.to_host)
            found.append(Tensor(port.spec.name, port.spec.datatype, shape, array.data))
        self.copied_ns += time.perf_counter_ns() - begun
        return found


def bytes_of(spec: TensorSpec, sizes: Sequence[Mapping[str, int]], shapes: Sizes) -> int:
    """Return the bytes of the largest of these sizes.

    Raises:
        ServingError: A dimension is not known from the inputs.
    """
    names = {dim for dim in spec.dims if isinstance(dim, str)}
    if not all(names <= set(row) for row in sizes):
        raise ServingError(
            f"the size of output {spec.name!r} {spec.shape} does not follow from the inputs",
            hint="an om whose output sizes depend on the data cannot be served; fix them in the model",
        )
    return max(count(shapes.shape(spec, row)) * ITEM_BYTES[spec.datatype] for row in sizes)
