"""A look at what a batch gave: values that are no numbers, or as large as fp16 can be. One pass over the outputs of a batch; the
requests of it are told apart only where something was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from orchestrator.serving.link.wire import NONFINITE, SATURATED
from orchestrator.serving.protocol.answer import split_rows
from orchestrator.serving.protocol.tensors import Tensor, flat_array

if TYPE_CHECKING:
    from orchestrator.bundle.variant import Variant

LARGEST_FP16: Final = 65504.0
_SIGN: Final = 0x7FFF
_FP16_LARGEST, _FP16_INFINITE, _BF16_INFINITE = 0x7BFF, 0x7C00, 0x7F80
"""Bits without the sign; what is above infinity is NaN."""


def saturates(variant: Variant | None) -> bool:
    """Return whether an overflow may hide as the largest number of fp16 in this variant's outputs, of whatever datatype they are."""
    if variant is None or variant.soc is None:
        return False
    from orchestrator.ascend.precision import policy

    found = policy(variant.soc, variant.precision)
    return found.saturating and found.low == "fp16" and found.name not in {"fp32", "origin"}


def flags_of(parts: Sequence[Sequence[Tensor]], rows: Sequence[int], *, saturating: bool) -> list[int] | None:
    """Return what is wrong with the outputs of each request, as bits; None where nothing is.

    Args:
        parts: One for each request, or one for all of them.
        rows: Of each request that has outputs.
        saturating: See `saturates`; outputs of fp16 are always looked at.
    """
    found = [_look(part, saturating) for part in parts]
    if not any(found):
        return None
    if len(parts) == len(rows):
        return found
    return [_look(piece, saturating) for piece in split_rows(parts[0], rows)]


def _look(outputs: Sequence[Tensor], saturating: bool) -> int:
    flags = 0
    for tensor in outputs:
        if len(tensor.data) == 0:
            continue
        if tensor.datatype in ("FP32", "FP64"):
            flags |= _of_floats(flat_array(tensor.datatype, tensor.data), saturating)
        elif tensor.datatype == "FP16":
            flags |= _of_bits(tensor, _FP16_INFINITE, _FP16_LARGEST)
        elif tensor.datatype == "BF16":
            flags |= _of_bits(tensor, _BF16_INFINITE, _BF16_INFINITE)
    return flags


def _of_floats(values: npt.NDArray[Any], saturating: bool) -> int:
    # Two reductions need no memory, and both hand NaN on.
    low, high = float(np.minimum.reduce(values)), float(np.maximum.reduce(values))
    if low > -LARGEST_FP16 and high < LARGEST_FP16:
        return 0
    if -np.inf < low and high < np.inf:
        return SATURATED if saturating else 0
    if not saturating:
        return NONFINITE
    return NONFINITE | SATURATED * bool((np.abs(values[np.isfinite(values)]) >= LARGEST_FP16).any())


def _of_bits(tensor: Tensor, infinite: int, largest: int) -> int:
    """Of 16-bit floats the bits are compared: numpy has no fast arithmetic for them."""
    sizes = np.frombuffer(tensor.data, np.uint16) & _SIGN
    highest = int(sizes.max())
    if highest < largest:
        return 0
    if highest < infinite:
        return SATURATED
    return NONFINITE | SATURATED * bool((sizes[sizes < infinite] >= largest).any())
