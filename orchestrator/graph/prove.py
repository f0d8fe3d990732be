"""Proof of a rewrite: the graph is run before and after on the same inputs, in fp32, on this machine's CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnxruntime

from orchestrator.core.errors import GateError
from orchestrator.graph.examples import example_inputs, resized
from orchestrator.graph.parity import EXACT_DB, compare
from orchestrator.graph.read import GraphInfo
from orchestrator.graph.rewrites.base import Equivalence
from orchestrator.graph.run_onnx import runtime_errors
from orchestrator.graph.spec import check_arrays
from orchestrator.graph.verdict import EXPORT_SQNR_DB

Array = np.ndarray[Any, Any]

EXACT_SHARE: Final = 1e-6
"""How far an output may move, as a share of its peak, where the arithmetic is the same; fp32 itself is 6e-8 a step."""

APPROXIMATE_SQNR_DB: Final = 40.0

SAMPLES: Final = 4
"""How many samples are run; more cost time, and a wrong rewrite shows on the first."""

_ort = cast("Any", onnxruntime)
_ERRORS_ONLY: Final = 3
_ORT_DTYPES: Final = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(int16)": np.int16, "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Difference:
    """The worst of all outputs: largest |before - after|, that as a share of the output's peak, and the least SQNR."""

    max_abs: float
    share: float
    worst_sqnr_db: float


class Proof:
    """Holds the inputs, and what the graph answered last.

    Args:
        source: The graph before any rewrite.
        info: What is known of it.
        shapes: Dimension name -> the sizes that the target asks; the first is used.
        samples: Real inputs, axis 0 the sample; inputs out of nothing when None.

    Raises:
        GateError: The samples do not fit the graph's inputs.
    """

    def __init__(
        self, source: Path, info: GraphInfo, shapes: Mapping[str, tuple[int, ...]], samples: Mapping[str, Array] | None
    ) -> None:
        self.synthetic = samples is None
        self.unproved = ""
        sizes = {name: values[0] for name, values in shapes.items()}
        self._inputs = example_inputs(info.inputs, sizes=sizes) if samples is None else _cut(info, sizes, samples)
        self._last: dict[str, Array] = {}
        try:
            self._last = run_plain(source, self._inputs)
        except GateError as error:
            self.unproved = error.message

    def check(self, name: str, equivalence: Equivalence, stage: Path) -> Difference | None:
        """Run the graph after a rewrite; None when the graph before it could not be run.

        Raises:
            GateError: It cannot be run any more, or answers something else; names the rewrite.
        """
        if self.unproved:
            return None
        try:
            found = run_plain(stage, self._inputs)
        except GateError as error:
            raise _wrong(name, f"the graph does not run any more: {error.message}") from error
        before, self._last = self._last, found
        difference = _difference(name, before, found)
        if not _close(equivalence, difference):
            raise _wrong(
                name,
                f"an output moved by {difference.share:.2g} of its peak, {difference.worst_sqnr_db:.1f} dB",
            )
        return difference


def run_plain(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run a graph as it is written, with none of the runtime's own optimisations.

    Raises:
        GateError: The runtime cannot load or run it.
    """
    options = _ort.SessionOptions()
    options.graph_optimization_level = _ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _ERRORS_ONLY
    try:
        session = _ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = {item.name: _as(inputs[item.name], item.type) for item in session.get_inputs()}
        names = [item.name for item in session.get_outputs()]
        return dict(zip(names, cast("list[Array]", session.run(names, feed)), strict=True))
    except runtime_errors() as error:
        raise GateError(f"onnxruntime: {error}", place=path.name, hint="the message names the node") from error


def _as(array: Array, declared: str) -> Array:
    """Return the array as the graph declares the input: a rewrite may have narrowed it."""
    dtype = _ORT_DTYPES.get(declared)
    return np.ascontiguousarray(array if dtype is None else array.astype(dtype, copy=False))


def _cut(info: GraphInfo, sizes: Mapping[str, int], samples: Mapping[str, Array]) -> dict[str, Array]:
    """Return some samples in the sizes that the graph will have."""
    wanted = dict(sizes)
    arrays = {spec.name: np.asarray(samples[spec.name]) for spec in info.inputs if spec.name in samples}
    for spec in info.inputs:
        if spec.name not in arrays or not spec.shape or not arrays[spec.name].ndim:
            continue
        first, count = spec.shape[0], arrays[spec.name].shape[0]
        if isinstance(first, str):
            wanted.setdefault(first, min(SAMPLES, count))
        elif first != count:
            arrays[spec.name] = np.take(arrays[spec.name], np.arange(first) % count, axis=0)
    if set(arrays) == {spec.name for spec in info.inputs}:
        arrays = resized(info.inputs, arrays, wanted)
    check_arrays(info.inputs, arrays, "the samples")
    return arrays


def _difference(name: str, before: Mapping[str, Array], after: Mapping[str, Array]) -> Difference:
    worst = Difference(0.0, 0.0, EXACT_DB)
    rows = {key: _rows(value) for key, value in before.items()}, {key: _rows(value) for key, value in after.items()}
    for output, metrics in compare(*rows).items():
        reference = rows[0].get(output)
        if reference is not None and reference.size == 0 and after[output].shape == before[output].shape:
            continue
        if metrics.problem or metrics.nonfinite_mismatched:
            raise _wrong(name, f"output {output!r}: {metrics.problem or 'other values are non-finite'}")
        assert reference is not None
        if not metrics.is_float:
            if metrics.agreement < 1.0:
                raise _wrong(name, f"output {output!r}: {1 - metrics.agreement:.2%} of its values differ")
            continue
        finite = np.abs(reference[np.isfinite(reference)].astype(np.float64))
        peak = float(finite.max()) if finite.size else 0.0
        share = metrics.max_abs / peak if peak else (0.0 if metrics.max_abs == 0.0 else 1.0)
        worst = Difference(
            max(worst.max_abs, metrics.max_abs), max(worst.share, share),
            min(worst.worst_sqnr_db, metrics.worst_sqnr_db),
        )  # fmt: skip
    return worst


def _rows(array: Array) -> Array:
    return array.reshape(1) if array.ndim == 0 else array


def _close(equivalence: Equivalence, difference: Difference) -> bool:
    if difference.share <= EXACT_SHARE:
        return True
    if equivalence == "exact":
        return False
    return difference.worst_sqnr_db >= (EXPORT_SQNR_DB if equivalence == "tolerance" else APPROXIMATE_SQNR_DB)


def _wrong(name: str, what: str) -> GateError:
    return GateError(
        f"the rewrite {name} is wrong for this graph: {what}",
        hint=f"switch it off in the recipe (rewrites: {{{name}: false}}) and report the graph",
        details={"rewrite": name},
    )
