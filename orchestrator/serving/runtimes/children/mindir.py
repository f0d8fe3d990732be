"""MindSpore Lite in its own interpreter: see `loop`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from loop import Rejected, serve, soc_name


class _Model:
    def __init__(self, request: Any) -> None:
        lite: Any = importlib.import_module("mindspore_lite")
        self._lite = lite
        context = lite.Context()
        context.target = [request["target"]]
        if request["target"] == "cpu":
            context.cpu.thread_num = 1  # with 2, batched MatMuls of 2.0.0 answer wrong numbers
        else:
            context.ascend.device_id = 0
            context.ascend.precision_mode = request["precision_mode"]
        self._model = lite.Model()
        self._model.build_from_file(request["model"], lite.ModelType.MINDIR, context)
        self._target = request["target"]

    def facts(self) -> Any:
        inputs = [[t.name, t.dtype.name.lower(), [int(dim) for dim in t.shape]] for t in self._model.get_inputs()]
        soc = "" if self._target == "cpu" else soc_name()
        return {"version": self._lite.__version__, "inputs": inputs, "soc": soc}

    def run(self, arrays: Any) -> Any:
        inputs = self._model.get_inputs()
        if {tensor.name for tensor in inputs} != set(arrays):
            raise Rejected(f"the model's inputs are {sorted(t.name for t in inputs)}, given {sorted(arrays)}")
        shapes = [list(arrays[tensor.name].shape) for tensor in inputs]
        if shapes != [list(tensor.shape) for tensor in inputs]:
            self._model.resize(inputs, shapes)
            inputs = self._model.get_inputs()
        for tensor in inputs:  # before every predict: it reuses these buffers as scratch
            tensor.set_data_from_numpy(_fitted(arrays[tensor.name], tensor))
        return [tensor.get_data_to_numpy().copy() for tensor in self._model.predict(inputs)]


def _fitted(array: Any, tensor: Any) -> Any:
    """Cast to what the tensor holds: the converter turns int64 into int32 and float64 into float32."""
    import numpy

    wanted = numpy.dtype(tensor.dtype.name.lower())
    if wanted.kind in "iu" and array.size:
        limits = numpy.iinfo(wanted)
        if array.min() < limits.min or array.max() > limits.max:
            raise Rejected(f"input {tensor.name!r} holds values that {wanted} cannot")
    return numpy.ascontiguousarray(array.astype(wanted))  # a copy: it may be written to


serve(_Model)
