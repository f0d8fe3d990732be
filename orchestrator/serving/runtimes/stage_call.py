"""One call of the user's stage over a batch: arrays in, arrays out, and the check that they are what was declared."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from orchestrator.serving.protocol.tensors import Tensor, TensorSpec, from_array
from orchestrator.serving.runtimes.api import ExecutionFailed, InputRejected

Array = npt.NDArray[Any]
Function = Callable[[dict[str, Array]], Mapping[str, Array]]

_LONGEST: Final = 400


def call_stage(
    function: Function,
    what: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[TensorSpec],
    *,
    binary: Collection[str] = (),
    rows: int | None = None,
) -> list[Tensor]:
    """Call a stage.

    Args:
        function: The user's.
        what: Names it in errors, e.g. `preprocess text:tokens`.
        inputs: They fit what the stage takes.
        outputs: What it must give, in this order.
        binary: Inputs whose BYTES are given as bytes; those of others are given as text.
        rows: Size that axis 0 of every output must have; None = axis 0 has no meaning.

    Raises:
        InputRejected: The function raised ValueError or TypeError, or a text is no UTF-8: the client's mistake.
        ExecutionFailed: It raised anything else, or gave something else than declared.
    """
    arrays = {tensor.name: _array(tensor, text=tensor.name not in binary) for tensor in inputs}
    try:
        found = function(arrays)
    except (ValueError, TypeError) as error:
        raise InputRejected(f"{what} refuses this input: {_line(error)}") from error
    except Exception as error:
        traceback.print_exception(error, chain=error.__cause__ is not None, file=sys.stderr)
        raise ExecutionFailed(f"{what} failed on this input: {_line(error)}") from error
    except SystemExit as error:
        raise ExecutionFailed(f"{what} tried to end its process: {_line(error)}") from error
    return _checked(found, what, outputs, rows)


def _array(tensor: Tensor, *, text: bool) -> Array:
    array = cast("Array", tensor.array())
    if tensor.datatype != "BYTES" or not text:
        return array
    try:
        texts = [cast("bytes", item).decode() for item in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise InputRejected(f"input {tensor.name!r} holds bytes that are not UTF-8: {error}") from error
    filled = np.empty(len(texts), dtype=object)
    filled[:] = texts
    return filled.reshape(array.shape)


def _checked(found: object, what: str, outputs: Sequence[TensorSpec], rows: int | None) -> list[Tensor]:
    wanted = [spec.name for spec in outputs]
    if not isinstance(found, Mapping):
        raise ExecutionFailed(f"{what} gave {type(found).__name__}, expected a dict of arrays {wanted}")
    given = cast("Mapping[object, object]", found)
    if set(given) != set(wanted):
        raise ExecutionFailed(f"{what} gave {sorted(map(str, given))[:20]}, expected {sorted(wanted)}")
    sizes: dict[str, int] = {}
    tensors: list[Tensor] = []
    for spec in outputs:
        try:
            tensor = from_array(spec.name, np.asarray(given[spec.name]))
        except (ValueError, TypeError) as error:
            raise ExecutionFailed(f"{what}: {_line(error)}") from error
        problem = _mismatch(tensor, spec, sizes, rows)
        if problem:
            raise ExecutionFailed(
                f"{what} gave {spec.name!r} as {tensor.datatype}{list(tensor.shape)}, expected "
                f"{spec.datatype}[{', '.join(str(dim) or '?' for dim in spec.dims)}]: {problem}"
            )
        tensors.append(tensor)
    return tensors


def _mismatch(tensor: Tensor, spec: TensorSpec, sizes: dict[str, int], rows: int | None) -> str:
    if tensor.datatype != spec.datatype:
        return f"give it as {spec.datatype}, e.g. by .astype()"
    if len(tensor.shape) != len(spec.dims):
        return f"rank {len(tensor.shape)} is not {len(spec.dims)}"
    if rows is not None and tensor.shape[0] != rows:
        return f"it took {rows} rows and must give as many"
    for axis, (size, dim) in enumerate(zip(tensor.shape, spec.dims, strict=True)):
        wanted = size if dim == "" else sizes.setdefault(dim, size) if isinstance(dim, str) else dim
        if size != wanted:
            return f"axis {axis} must be {wanted}"
    return ""


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:_LONGEST]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
