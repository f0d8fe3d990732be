"""Warm-up: every shape that a model was compiled for runs once before it serves, on real samples where they fit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from orchestrator.bundle.golden import Golden
from orchestrator.core.errors import DeviceError
from orchestrator.serving.protocol.tensors import ITEM_BYTES, Tensor, TensorSpec, count, from_array
from orchestrator.serving.runtimes.api import ExecutionFailed, InputRejected, Session


def warm_up(session: Session, golden: Golden) -> int:
    """Run every bucket once; returns how many there are.

    Raises:
        DeviceError: One does not run; the message names its shapes.
    """
    for bucket in session.buckets:
        inputs = [_filled(spec, bucket[spec.name], golden.inputs) for spec in session.inputs]
        try:
            session.collect(session.submit(inputs))
        except (InputRejected, ExecutionFailed) as error:
            raise DeviceError(
                f"warm-up with shapes { {name: list(shape) for name, shape in bucket.items()} }: {error.message}",
                hint=error.hint or "compile the model again for the shapes that are served",
            ) from error
    return len(session.buckets)


def _filled(spec: TensorSpec, shape: tuple[int, ...], samples: Mapping[str, npt.NDArray[np.generic]]) -> Tensor:
    array = samples.get(spec.name)
    if array is not None and array.shape[1:] == shape:
        return from_array(spec.name, array[0])
    if array is not None and array.shape[1:] == shape[1:] and array.ndim == len(shape):
        return from_array(spec.name, np.resize(array, shape))  # repeats the samples
    return Tensor(spec.name, spec.datatype, shape, bytes(count(shape) * (ITEM_BYTES[spec.datatype] or 4)))
