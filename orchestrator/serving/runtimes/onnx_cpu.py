"""ONNX on the CPU through onnxruntime: the rehearsal of an NPU, always labelled so."""

from __future__ import annotations

import importlib
import os
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from orchestrator.core.errors import DeviceError, ServingError
from orchestrator.serving.protocol.tensors import Dim, Tensor, TensorSpec, from_array
from orchestrator.serving.runtimes.api import REHEARSAL, Bucket, ExecutionFailed, InputRejected, Job, Session
from orchestrator.serving.runtimes.in_collect import InCollect
from orchestrator.serving.runtimes.sizes import MAX_BATCH, batches

# onnxruntime has no types; here is its whole surface.
_ort: Any = importlib.import_module("onnxruntime")
_state: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
_Rejected: Final = cast("type[Exception]", _state.InvalidArgument)
_ORT_ERRORS: Final = cast(
    "tuple[type[Exception], ...]",
    (_state.Fail, _state.RuntimeException, _state.EPFail, _state.NotImplemented, _state.InvalidArgument),
)
_LOAD_ERRORS: Final = cast(
    "tuple[type[Exception], ...]",
    (*_ORT_ERRORS, _state.NoSuchFile, _state.InvalidGraph, _state.InvalidProtobuf, _state.NoModel),
)

_PROVIDER: Final = "CPUExecutionProvider"
_THREADS: Final = 4
_TYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


def load(job: Job) -> Session:
    """Load `model.onnx`.

    Raises:
        DeviceError: The device is anything but the rehearsal, or onnxruntime chose another provider.
        ServingError: The file is no model that this runtime can serve.
    """
    device, model = job.device, job.folder / "model.onnx"
    if device != REHEARSAL:
        raise DeviceError(
            f"runtime onnx-cpu runs on a CPU and cannot serve as {device!r}",
            hint=f"a rehearsal pool has the device {REHEARSAL!r}; a real pool needs runtime om, mindir or onnx-cann",
        )
    options: Any = _ort.SessionOptions()
    options.intra_op_num_threads = min(_THREADS, os.cpu_count() or 1)
    options.inter_op_num_threads = 1
    # Spinning threads would starve the router and the other replicas of a small machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session: Any = _ort.InferenceSession(str(model), options, providers=[_PROVIDER])
    except _LOAD_ERRORS as error:
        raise ServingError(f"onnxruntime cannot load the model: {error}", place=str(model)) from error
    active = cast("list[str]", session.get_providers())
    if active != [_PROVIDER]:
        raise DeviceError(f"asked onnxruntime for {_PROVIDER}, it runs {active}")
    return OnnxCpuSession(session)


class OnnxCpuSession(InCollect):
    """See `Session`."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session: Any = session
        self.device = REHEARSAL
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self.max_batch = MAX_BATCH if batches(self.inputs, self.outputs) else 1
        self.depth = 2
        self.buckets: tuple[Bucket, ...] = ()
        self._names = [spec.name for spec in self.outputs]

    def collect(self, ticket: int) -> list[Tensor]:
        """Run the batch of this ticket."""
        feed = {tensor.name: _feed(tensor) for tensor in self.taken(ticket)}
        try:
            arrays = cast("list[npt.NDArray[np.generic]]", self._session.run(self._names, feed))
        except _Rejected as error:
            raise InputRejected(f"the model refuses this input: {_line(error)}") from error
        except _ORT_ERRORS as error:
            raise ExecutionFailed(f"the model failed on this input: {_line(error)}") from error
        return [from_array(spec.name, array) for spec, array in zip(self.outputs, arrays, strict=True)]

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _feed(tensor: Tensor) -> npt.NDArray[np.generic]:
    array = tensor.array()
    if tensor.datatype != "BYTES":
        return array
    # onnxruntime's string tensors are UTF-8 text.
    try:
        texts = [cast("bytes", item).decode() for item in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise InputRejected(f"input {tensor.name!r} holds bytes that are not UTF-8: {error}") from error
    filled = np.empty(len(texts), dtype=object)
    filled[:] = texts
    return cast("npt.NDArray[np.generic]", filled.reshape(array.shape))


def _spec(node: Any) -> TensorSpec:
    datatype = _TYPES.get(node.type)
    if datatype is None:
        raise ServingError(f"tensor {node.name!r} has type {node.type}, which cannot be served")
    return TensorSpec(node.name, datatype, tuple(_dim(dim) for dim in cast("list[object]", node.shape)))


def _dim(value: object) -> Dim:
    if isinstance(value, int) and value >= 0:
        return value
    return value if isinstance(value, str) else ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
