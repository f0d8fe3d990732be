"""OM files of ATC on an NPU, through pyACL. Two sets of buffers, so that one batch is copied in while another computes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.core.errors import DeviceError, ServingError
from orchestrator.serving.protocol.tensors import Tensor, TensorSpec
from orchestrator.serving.runtimes.acl_buffers import GEAR_INPUT, Buffers, Loaded, Mode, Port, bytes_of
from orchestrator.serving.runtimes.acl_device import AclDevice
from orchestrator.serving.runtimes.api import (
    REHEARSAL,
    Bucket,
    Copying,
    ExecutionFailed,
    Holding,
    InputRejected,
    Job,
    Session,
)
from orchestrator.serving.runtimes.sizes import Sizes, sizes_of_variant

DEPTH: Final = 2
_TYPES: Final[Mapping[int, str]] = {
    0: "FP32", 1: "FP16", 2: "INT8", 3: "INT32", 4: "UINT8", 6: "INT16", 7: "UINT16", 8: "UINT32", 9: "INT64",
    10: "UINT64", 11: "FP64", 12: "BOOL", 27: "BF16",
}  # fmt: skip
_PAUSE_S: Final = 0.0001


def load(job: Job) -> Session:
    """Load the variant's `.om`.

    Raises:
        DeviceError: No pyACL, no device, another SoC, or not enough memory.
        ServingError: The file does not load, or is not what the variant says.
    """
    variant = job.variant
    if variant is None:
        raise ServingError("runtime om serves variants only", hint="compile the bundle for the pool's target")
    if job.device == REHEARSAL or variant.soc != job.device:
        raise DeviceError(
            f"the om was compiled for {variant.soc} and cannot serve as {job.device!r}",
            hint="serve the target's rehearsal in a rehearsal pool, or compile for the pool's SoC",
        )
    device = AclDevice(job.device, job.work)
    try:
        return OmSession(device, _load(device, _file(job.folder), sizes_of_variant(variant)))
    except ExecutionFailed as error:
        device.close()
        raise ServingError(
            f"the om cannot be loaded: {error.message}", place=str(job.folder), hint=error.hint
        ) from error
    except BaseException:
        device.close()
        raise


class OmSession(Copying, Holding):
    """See `Session`."""

    def __init__(self, device: AclDevice, loaded: Loaded) -> None:
        self._device_handle, self._loaded = device, loaded
        self.device = str(device.get("get_soc_name"))
        self.inputs, self.outputs = loaded.sizes.inputs, loaded.sizes.outputs
        self.max_batch = loaded.sizes.max_batch
        self.buckets: tuple[Bucket, ...] = loaded.sizes.buckets
        self.depth = DEPTH
        self.held_bytes = loaded.held_bytes
        self._free = [Buffers(device, loaded) for _ in range(DEPTH)]
        self._running: dict[int, Buffers] = {}
        self._failed: dict[int, InputRejected | ExecutionFailed] = {}
        self._ticket = 0

    def submit(self, inputs: Sequence[Tensor]) -> int:
        """Copy in and queue; a set of buffers must be free, which the credit of `depth` sees to."""
        self._ticket += 1
        buffers = self._free.pop()
        try:
            buffers.start(inputs, self._loaded.sizes.fit(inputs))
        except (InputRejected, ExecutionFailed) as error:
            self._free.append(buffers)
            self._failed[self._ticket] = error
        else:
            self._running[self._ticket] = buffers
        return self._ticket

    def done(self, ticket: int, wait_s: float) -> bool:
        """Ask the device, which never blocks: pyACL keeps the GIL while it waits."""
        if ticket in self._failed:
            return True
        event, until = self._running[ticket].event, time.monotonic() + wait_s
        while not self._device_handle.done(event):
            if time.monotonic() >= until:
                return False
            time.sleep(_PAUSE_S)
        return True

    def collect(self, ticket: int) -> list[Tensor]:
        """Copy the outputs of this batch to the host."""
        if ticket in self._failed:
            raise self._failed.pop(ticket)
        while not self.done(ticket, 1.0):
            pass
        buffers = self._running.pop(ticket)
        self._free.append(buffers)
        outputs = buffers.finish()
        self.copied_us = buffers.copied_ns // 1000
        return outputs

    def close(self) -> None:
        """Free buffers, model and stream, and with the last model of the process context and device."""
        self._device_handle.close()


def _file(folder: Path) -> Path:
    """Return the model: ATC may append the host to its name."""
    found = sorted(folder.glob("*.om"))
    if len(found) != 1:
        raise ServingError(f"{len(found)} .om files, expected one", place=str(folder), hint="compile the bundle again")
    return found[0]


def _load(device: AclDevice, path: Path, sizes: Sizes) -> Loaded:
    work, weight = device.call("mdl.query_size", str(path))
    device.check_memory(int(work) + int(weight), "the model")
    (model,) = device.own("mdl.load_from_file", "mdl.unload", str(path))
    desc = device.own_got("mdl.create_desc", "mdl.destroy_desc")
    device.call("mdl.get_desc", desc, model)
    names = [
        str(device.get("mdl.get_input_name_by_index", desc, place))
        for place in range(device.get("mdl.get_num_inputs", desc))
    ]
    gear_index = names.index(GEAR_INPUT) if GEAR_INPUT in names else -1
    gear_bytes = int(device.get("mdl.get_input_size_by_index", desc, gear_index)) if gear_index >= 0 else 0
    inputs = _ports(device, desc, "input", _in_order(names, sizes), sizes)
    outputs = _ports(device, desc, "output", _output_order(device, desc, sizes), sizes)
    typed = Sizes(
        tuple(_typed(spec, inputs) for spec in sizes.inputs), tuple(_typed(spec, outputs) for spec in sizes.outputs),
        sizes.named, sizes.batch, sizes.gears, sizes.ranges,
    )  # fmt: skip
    mode = _mode(device, desc, gear_index, sizes)
    varies = next((place for place, spec in enumerate(sizes.named) if spec.dims and isinstance(spec.dims[0], str)), 0)
    total = DEPTH * (gear_bytes + sum(port.size_bytes for port in (*inputs, *outputs)))
    device.check_memory(total, "its buffers")
    held = int(work) + int(weight) + total
    return Loaded(int(model), mode, inputs, outputs, gear_index, gear_bytes, typed, varies, held)


def _mode(device: AclDevice, desc: int, gear_index: int, sizes: Sizes) -> Mode:
    """Return how the size is chosen, as the om itself says; its gears must be those of the variant."""
    if gear_index < 0:
        return "ranges" if sizes.ranges else "static"
    (batches,) = device.call("mdl.get_dynamic_batch", desc)
    made = sorted(int(size) for size in batches["batch"][: int(batches["batchCount"])])
    if made:
        wanted = sorted({spec_sizes[0] for bucket in sizes.buckets for spec_sizes in bucket.values()})
        if not set(made) <= set(wanted) or len(made) != len(sizes.gears):
            raise ServingError(f"the om has the batches {made}, the variant {wanted}", hint="compile the bundle again")
        return "batch"
    (count,) = device.call("mdl.get_input_dynamic_gear_count", desc, -1)
    if int(count) != len(sizes.gears):
        raise ServingError(
            f"the om has {int(count)} gears of dimensions, the variant {len(sizes.gears)}",
            hint="compile the bundle again; gears of picture sizes (AIPP) are not served",
        )
    return "dims"


def _in_order(names: Sequence[str], sizes: Sizes) -> list[tuple[int, TensorSpec]]:
    """Return where each of the variant's inputs is in the model; both have the same order, but for the gear's own."""
    own = [(place, name) for place, name in enumerate(names) if name != GEAR_INPUT]
    wanted = [spec.name for spec in sizes.named]
    if [name for _, name in own] != wanted:
        raise ServingError(
            f"the om takes {[name for _, name in own]}, the variant says {wanted}", hint="compile the bundle again"
        )
    return [(place, spec) for (place, _), spec in zip(own, sizes.named, strict=True)]


def _output_order(device: AclDevice, desc: int, sizes: Sizes) -> list[tuple[int, TensorSpec]]:
    """Return where each output is: ATC keeps their order and gives them names of its own."""
    found = int(device.get("mdl.get_num_outputs", desc))
    if found != len(sizes.outputs):
        raise ServingError(f"the om gives {found} outputs, the variant says {len(sizes.outputs)}")
    return list(enumerate(sizes.outputs))


def _ports(
    device: AclDevice, desc: int, kind: str, places: Sequence[tuple[int, TensorSpec]], sizes: Sizes
) -> list[Port]:
    found: list[Port] = []
    ends = [{name: limits[1] for name, limits in sizes.ranges.items()}]
    rows = [{**gear, **end} for gear in sizes.gears or ({},) for end in ends]
    for place, spec in places:
        code = int(device.get(f"mdl.get_{kind}_data_type", desc, place))
        if code not in _TYPES:
            raise ServingError(f"{kind} {spec.name!r} has the ACL type {code}, which cannot be served")
        typed = TensorSpec(spec.name, _TYPES[code], spec.dims)
        _check_dims(device, desc, kind, place, spec, sizes)
        size = int(device.get(f"mdl.get_{kind}_size_by_index", desc, place))  # 0 with ranges, the largest with gears
        layout = int(device.get(f"mdl.get_{kind}_format", desc, place))
        found.append(Port(typed, code, layout, max(size, bytes_of(typed, rows, sizes))))
    return found


def _check_dims(device: AclDevice, desc: int, kind: str, place: int, spec: TensorSpec, sizes: Sizes) -> None:
    (answer,) = device.call(f"mdl.get_{kind}_dims", desc, place)
    dims = [int(dim) for dim in cast("Mapping[str, Any]", answer)["dims"]]
    wanted = [{dim} if isinstance(dim, int) else {gear.get(dim, -1) for gear in sizes.gears} for dim in spec.dims]
    fits = len(dims) == len(wanted) and all(d == -1 or d in w or -1 in w for d, w in zip(dims, wanted, strict=True))
    if not fits:
        raise ServingError(
            f"{kind} {spec.name!r} has shape {dims} in the om and {spec.shape} in the variant",
            hint="compile the bundle again",
        )


def _typed(spec: TensorSpec, ports: Sequence[Port]) -> TensorSpec:
    datatype = next(port.spec.datatype for port in ports if port.spec.name == spec.name)
    return TensorSpec(spec.name, datatype, spec.dims)
