"""An ONNX graph on this machine's CPU: the `predict` of evaluation and parity, never a stand-in for a device.

The fp32 graph only: fp16 graphs on this runtime are computed in fp32 behind the scenes and hide overflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnxruntime

from orchestrator.core.errors import GateError, UserCodeError
from orchestrator.graph.read import GraphInfo, inspect_onnx
from orchestrator.graph.spec import TensorSpec, check_arrays

Array = np.ndarray[Any, Any]

_ort = cast("Any", onnxruntime)  # ships no types
_ERRORS_ONLY: Final = 3


class OnnxModel:
    """A loaded graph. Calling it runs it: `{input: array} -> {output: array}`, axis 0 is the sample.

    Args:
        path: The ONNX file; it is checked before it is loaded.
        threads: Threads inside one operator; results do not depend on it beyond rounding.
        max_batch: Run at most so many samples at once; None runs all at once. A graph with a fixed first dimension
            runs in pieces of exactly that many.

    Raises:
        GateError: The file is refused or the runtime cannot load it.
    """

    device: Final = "cpu"

    def __init__(self, path: Path, *, threads: int = 1, max_batch: int | None = None) -> None:
        self.info: GraphInfo = inspect_onnx(path)
        self.inputs, self.outputs = self.info.inputs, self.info.outputs
        self._sliced, fixed = _batching(self.inputs)
        self._piece, self._exact = fixed or max_batch, fixed is not None
        try:
            self._session = _ort.InferenceSession(str(path), _options(threads), providers=["CPUExecutionProvider"])
        except runtime_errors() as error:
            raise GateError(
                f"onnxruntime cannot load the graph: {error}", place=path.name, hint="the message names the operator"
            ) from error

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run all samples and return every output.

        Raises:
            UserCodeError: The inputs are not those that the graph declares.
            GateError: The runtime failed on them.
        """
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        count = _samples([arrays[name] for name in self._sliced if name in arrays])
        if self._piece is None or count == self._piece or (count < self._piece and not self._exact):
            return self._run(arrays)
        if self._exact and count % self._piece:
            raise UserCodeError(
                f"{count} samples do not fill batches of {self._piece}, which is the only size this graph takes",
                hint="give a multiple, or name the batch dimension in `model.inputs` so that it may vary",
            )
        pieces = [
            self._run({n: a[start : start + self._piece] if n in self._sliced else a for n, a in arrays.items()})
            for start in range(0, count, self._piece)
        ]
        return {spec.name: np.concatenate([piece[spec.name] for piece in pieces]) for spec in self.outputs}

    def _run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        check_arrays(self.inputs, arrays, "input of the ONNX graph", error=UserCodeError)
        names = [spec.name for spec in self.outputs]
        feed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        try:
            values = self._session.run(names, feed)
        except runtime_errors() as error:
            raise GateError(f"onnxruntime failed: {error}", hint="the message names the node") from error
        return dict(zip(names, cast("list[Array]", values), strict=True))


def _options(threads: int) -> Any:
    options = _ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _ERRORS_ONLY
    return options


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return the runtime's own errors, which share no base of their own."""
    module = _ort.capi.onnxruntime_pybind11_state
    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NotImplemented",
        "RuntimeException",
        "NoSuchFile",
    )
    return (*(cast("type[Exception]", getattr(module, name)) for name in names), ValueError)


def _batching(inputs: tuple[TensorSpec, ...]) -> tuple[frozenset[str], int | None]:
    """Return the inputs whose axis 0 is the sample, and the only batch size there is, if it is fixed."""
    varying = frozenset(spec.name for spec in inputs if 0 in spec.dynamic)
    sizes = {spec.shape[0] if spec.shape else 1 for spec in inputs}
    if varying or len(sizes) != 1:
        return varying, None
    return frozenset(spec.name for spec in inputs), next(dim for dim in sizes if isinstance(dim, int))


def _samples(arrays: Sequence[Array]) -> int:
    counts = {array.shape[0] for array in arrays if array.ndim}
    if len(counts) > 1:
        raise UserCodeError(
            f"the inputs have different numbers of samples: {sorted(counts)}", hint="axis 0 is the sample"
        )
    return counts.pop() if counts else 1
