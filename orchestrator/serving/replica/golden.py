"""Warm-up and self-check: a replica must give the bundle's reference outputs before it may serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from orchestrator.bundle.golden import Golden
from orchestrator.core.errors import DeviceError, ServingError
from orchestrator.serving.link.frames import MAX_BODY_BYTES
from orchestrator.serving.protocol.tensors import Tensor, TensorSpec, from_array
from orchestrator.serving.runtimes.api import Session

_RTOL: Final = 1e-3
_ATOL: Final = 1e-4
"""Of the largest reference value of the output. Wide enough for another order of additions, far below what a wrong kernel gives."""
_ROUNDED_SQNR_DB: Final = 20.0
"""What a model that rounds must keep at least: below what any sound fp16 or bf16 network gives, above what a wrong kernel
gives. The limits of the recipe are judged by parity and by the smoke test."""
_ROUNDED_AGREEMENT: Final = 0.9
"""Share of equal integers that such a model must keep."""
_MAX_SAMPLES: Final = 8
"""Enough to notice a wrong device or a wrong file, few enough to start quickly; the parity step looks at all of them."""
_MAX_REPLY_BYTES: Final = MAX_BODY_BYTES // 2


def self_check(session: Session, golden: Golden, *, rounded: bool = False) -> int:
    """Run golden samples one by one and, where the model batches, together; returns the batch size that is safe.

    A model with large outputs gets the batch whose reply the link can carry. A model whose rows change when they run together (it mixes along axis 0) is served without batching: 1.

    Args:
        session: The loaded model.
        golden: The bundle's samples and reference outputs.
        rounded: The model computes in fewer bits than the references; see `_ROUNDED_SQNR_DB`.

    Raises:
        ServingError: The inputs or outputs have other names than the model's.
        DeviceError: A value is not finite or is out of tolerance.
    """
    _check_names(session, golden)
    largest = 1
    count = min(golden.count, _MAX_SAMPLES)
    for sample in range(count):
        found = _run(session, [_one(spec, golden.inputs[spec.name], sample) for spec in session.inputs])
        largest = max(largest, sum(len(tensor.data) for tensor in found))
        for spec, tensor in zip(session.outputs, found, strict=True):
            row = golden.outputs[spec.name][sample : sample + 1]
            wanted = row.reshape(tensor.shape) if row.size == _size(tensor) else row
            problem = _compare(tensor, wanted, rounded)
            if problem:
                raise DeviceError(
                    f"self-check of sample {sample}: output {spec.name!r} {problem}",
                    hint="the device, its driver or the bundle is broken; do not serve from it",
                )
    max_batch = max(1, min(session.max_batch, _MAX_REPLY_BYTES // largest))
    rows = min(count, max_batch)
    if rows < 2:
        return max_batch
    together = _run(session, [from_array(spec.name, golden.inputs[spec.name][:rows]) for spec in session.inputs])
    fits = all(not _compare(t, golden.outputs[t.name][:rows], rounded) for t in together)
    return max_batch if fits else 1


def _check_names(session: Session, golden: Golden) -> None:
    wanted = {spec.name for spec in session.inputs}, {spec.name for spec in session.outputs}
    if (set(golden.inputs), set(golden.outputs)) != wanted:
        raise ServingError(
            f"golden samples have {sorted(golden.inputs)} -> {sorted(golden.outputs)}, "
            f"the model has {sorted(wanted[0])} -> {sorted(wanted[1])}"
        )


def _one(spec: TensorSpec, array: npt.NDArray[np.generic], sample: int) -> Tensor:
    """Return sample `sample`: with a leading 1 where the model has an axis for it."""
    if array.ndim == len(spec.dims):
        return from_array(spec.name, array[sample : sample + 1])
    return from_array(spec.name, array[sample : sample + 1].reshape(array.shape[1:]))


def _run(session: Session, inputs: Sequence[Tensor]) -> list[Tensor]:
    return session.collect(session.submit(inputs))


def _size(tensor: Tensor) -> int:
    size = 1
    for dim in tensor.shape:
        size *= dim
    return size


def _compare(tensor: Tensor, wanted: npt.NDArray[np.generic], rounded: bool) -> str:
    """Return what is wrong, or nothing: shape first, then non-finite values, then numbers."""
    found = tensor.array()
    if found.shape != wanted.shape:
        return f"has shape {list(found.shape)}, reference {list(wanted.shape)}"
    if found.dtype.kind != "f":
        least = _ROUNDED_AGREEMENT if rounded else 1.0
        return "" if float(np.mean(np.equal(found, wanted))) >= least else "differs from the reference"
    values = cast("npt.NDArray[np.floating]", found).astype(np.float64)
    reference = cast("npt.NDArray[np.floating]", wanted).astype(np.float64)
    if not np.isfinite(values).all():
        return f"holds {int((~np.isfinite(values)).sum())} values that are not finite"
    size = np.abs(reference)
    off = np.abs(values - reference)
    if rounded:
        signal, noise = float((reference**2).sum()), float((off**2).sum())
        if noise * 10 ** (_ROUNDED_SQNR_DB / 10) <= signal or noise == 0:
            return ""
        return f"is off by up to {float(off.max()):.3g}, less than {_ROUNDED_SQNR_DB:g} dB of it is signal"
    # Written so that a NaN in the reference fails too.
    if bool((off <= _ATOL * size.max(initial=0) + _RTOL * size).all()):
        return ""
    return f"is off by up to {float(off.max()):.3g}"
