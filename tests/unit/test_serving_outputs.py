"""What a replica says of outputs that are no numbers, and of those that are as large as fp16 can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from orchestrator.bundle.variant import Variant
from orchestrator.serving.link.frames import FrameReader, LinkError, decode_tensors
from orchestrator.serving.link.wire import NONFINITE, SATURATED, Statuses, read_statuses
from orchestrator.serving.protocol.signature import Signature
from orchestrator.serving.protocol.tensors import Tensor, TensorSpec, from_array
from orchestrator.serving.replica.batch import execute, start
from orchestrator.serving.replica.outputs import flags_of, saturates
from orchestrator.serving.runtimes.api import ExecutionFailed, Session

NAN, INF = float("nan"), float("inf")


class Doubling:
    """A session: its output is the input; an input of 13 fails, with all that runs beside it."""

    def __init__(self, datatype: str = "FP32") -> None:
        self.spec = TensorSpec("x", datatype, ("n", 2))
        self._inputs: list[Sequence[Tensor]] = []

    def submit(self, inputs: Sequence[Tensor]) -> int:
        self._inputs.append(inputs)
        return len(self._inputs) - 1

    def collect(self, ticket: int) -> list[Tensor]:
        inputs = self._inputs[ticket]
        if (inputs[0].array() == 13).any():
            raise ExecutionFailed("13")
        return list(inputs)


def reply(
    values: Any, rows: list[int], *, max_batch: int = 8, datatype: str = "FP32", saturating: bool = False
) -> Statuses:
    """Run a batch; return what the router reads of the reply."""
    session = Doubling(datatype)
    tensor = values if isinstance(values, Tensor) else from_array("x", np.asarray(values))
    signature = Signature((session.spec,), (session.spec,), max_batch)
    work = start(cast("Session", session), signature, 7, [tensor], rows)
    (frame,) = FrameReader().feed(b"".join(execute(cast("Session", session), work, saturating=saturating)))
    decode_tensors(frame, "outputs")
    return read_statuses(frame, len(rows))


def f32(*rows: float) -> Any:
    return np.asarray([[row, 0.0] for row in rows], np.float32)


def test_a_sound_batch_says_nothing() -> None:
    assert reply(f32(1, -65504, 7e4, 0), [1, 2, 1]).flags is None
    assert reply(f32(), [0]).flags is None


def test_only_the_request_with_nan_is_flagged() -> None:
    assert reply(f32(1, NAN, 2, 3), [1, 1, 2]).flags == [0, NONFINITE, 0]
    assert reply(f32(1, 2, 3, -INF), [1, 1, 2]).flags == [0, 0, NONFINITE]
    assert reply(f32(NAN), [1], max_batch=1).flags == [NONFINITE]


def test_requests_that_failed_keep_their_place() -> None:
    found = reply(f32(1, 13, NAN, 2), [1, 1, 1, 1])
    assert [error is None for error in found.errors] == [True, False, True, True]
    assert found.flags == [0, 0, NONFINITE, 0]


def test_an_overflow_hides_where_the_soc_saturates() -> None:
    values = f32(65504, 65503, -7e4, 1)
    assert reply(values, [1, 1, 1, 1]).flags is None
    assert reply(values, [1, 1, 1, 1], saturating=True).flags == [SATURATED, 0, SATURATED, 0]
    assert reply(f32(INF, 65504), [2], saturating=True).flags == [NONFINITE | SATURATED]
    assert reply(f32(INF, 65504), [1, 1], saturating=True).flags == [NONFINITE, SATURATED]


def test_fp16_is_always_looked_at() -> None:
    values = f32(65504, -65504, INF, 65472, -NAN).astype(np.float16)
    assert reply(values, [1] * 5, datatype="FP16").flags == [SATURATED, SATURATED, NONFINITE, 0, NONFINITE]


def test_bf16_and_fp64() -> None:
    bits = np.asarray([[0x7F7F, 0], [0x7F80, 0], [0xFFC0, 0], [0x3F80, 0]], np.uint16)
    tensor = Tensor("x", "BF16", (4, 2), bits.tobytes())
    assert reply(tensor, [1] * 4, datatype="BF16").flags == [0, NONFINITE, NONFINITE, 0]
    assert reply(np.asarray([[1e300, 0], [INF, 0]]), [1, 1], datatype="FP64").flags == [0, NONFINITE]


def test_what_is_no_float_has_no_flags() -> None:
    tensor = from_array("x", np.full((3, 2), 2**31 - 1, np.int32))
    texts = from_array("y", np.asarray([b"nan"], object))
    assert flags_of([[tensor, texts]], [3], saturating=True) is None


def variant(soc: str | None, precision: str) -> Variant:
    return Variant(Path(), "", "t", "om", soc, precision, "om", {}, rehearsal=False, compiled=True)


def test_which_variants_saturate() -> None:
    assert saturates(variant("Ascend310P3", "fp16"))
    assert not saturates(variant("Ascend310P3", "origin"))
    assert not saturates(variant(None, "fp16"))
    assert not saturates(None)


@pytest.mark.parametrize("flags", [[1], [0, 0, 0], [0, -1], [0, True], "00", None])
def test_flags_that_make_no_sense_end_the_link(flags: object) -> None:
    from orchestrator.serving.link.frames import Frame, Kind

    head = {"status": [None, None], "compute_us": 1, "credit": 1, "flags": flags}
    with pytest.raises(LinkError, match="flags"):
        read_statuses(Frame(Kind.REPLY, 1, head, b""), 2)
