"""A batch inside the replica: run it once; where that fails, run its requests one by one, so that one cannot fail the others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.serving.link.frames import MAX_BODY_BYTES, Kind, encode_tensors
from orchestrator.serving.protocol.answer import split_rows
from orchestrator.serving.protocol.signature import Signature, misfit
from orchestrator.serving.protocol.tensors import ITEM_BYTES, Buffer, Tensor, count
from orchestrator.serving.replica.outputs import flags_of
from orchestrator.serving.runtimes.api import Copying, ExecutionFailed, InputRejected, Session

Status = dict[str, str] | None
_MARGIN_BYTES: Final = 1 << 16
"""For the gaps between tensors."""


@dataclass(frozen=True, slots=True)
class Work:
    """A submitted batch; `padded` where it had no rows and one row of zeros runs in its place."""

    number: int
    ticket: int
    inputs: Sequence[Tensor]
    rows: Sequence[int]
    signature: Signature
    padded: bool
    begun_ns: int


def start(session: Session, signature: Signature, number: int, inputs: Sequence[Tensor], rows: Sequence[int]) -> Work:
    """Submit a batch. Without a single row, one row of zeros runs, so that the outputs have their true shapes."""
    begun = time.perf_counter_ns()
    padded = signature.max_batch > 1 and sum(rows) == 0
    ticket = session.submit([_one_row(tensor) for tensor in inputs] if padded else inputs)
    return Work(number, ticket, inputs, rows, signature, padded, begun)


def execute(session: Session, work: Work, *, free_since_ns: int = 0, saturating: bool = False) -> list[Buffer]:
    """Collect a batch and return its reply frame, with one new credit; `compute_us` excludes waiting for the one before it.

    `saturating` as in `flags_of`.
    """
    begun = max(work.begun_ns, free_since_ns)
    statuses: list[Status] = [None] * len(work.rows)
    try:
        parts = [_collect(session, work)]
    except (InputRejected, ExecutionFailed) as error:
        if len(work.rows) == 1:
            statuses, parts = [_status(error)], []
        else:
            statuses, parts = _one_by_one(session, work)
    if sum(len(tensor.data) for part in parts for tensor in part) > MAX_BODY_BYTES - _MARGIN_BYTES:
        text = f"the outputs are over {MAX_BODY_BYTES} bytes, more than the link carries"
        statuses, parts = [_status(ExecutionFailed(text)) for _ in work.rows], []
    compute_us = (time.perf_counter_ns() - begun) // 1000
    tensors = [
        (same[0].name, same[0].datatype, _shape(same), [tensor.data for tensor in same])
        for same in zip(*parts, strict=True)
    ]
    head: dict[str, object] = {"status": statuses, "compute_us": compute_us, "credit": 1}
    flags = flags_of(
        parts, [r for r, wrong in zip(work.rows, statuses, strict=True) if wrong is None], saturating=saturating
    )
    if flags is not None:
        found = iter(flags)
        head["flags"] = [0 if wrong else next(found) for wrong in statuses]
    if isinstance(session, Copying):
        head["copy_us"] = session.copied_us
    return encode_tensors(Kind.REPLY, head, "outputs", tensors, number=work.number)


def _collect(session: Session, work: Work) -> list[Tensor]:
    outputs = session.collect(work.ticket)
    if work.padded:
        outputs = [_no_rows(tensor) for tensor in outputs]
    rows = sum(work.rows)
    if work.signature.max_batch > 1 and any(tensor.shape[:1] != (rows,) for tensor in outputs):
        shapes = [list(tensor.shape) for tensor in outputs]
        raise ExecutionFailed(f"the model gave outputs of shapes {shapes} for {rows} rows")
    wrong = misfit(outputs, work.signature)
    if wrong:
        raise ExecutionFailed(f"the model gave {wrong}")
    return outputs


def _one_by_one(session: Session, work: Work) -> tuple[list[Status], list[list[Tensor]]]:
    statuses: list[Status] = []
    parts: list[list[Tensor]] = []
    for inputs, rows in zip(split_rows(work.inputs, work.rows), work.rows, strict=True):
        try:
            parts.append(_collect(session, start(session, work.signature, 0, inputs, [rows])))
            statuses.append(None)
        except (InputRejected, ExecutionFailed) as error:
            statuses.append(_status(error))
    return statuses, parts


def _status(error: InputRejected | ExecutionFailed) -> Status:
    return {"kind": "rejected" if isinstance(error, InputRejected) else "execution", "error": error.message}


def _shape(same: Sequence[Tensor]) -> tuple[int, ...]:
    first = same[0].shape
    return first if len(same) == 1 else (sum(tensor.shape[0] for tensor in same), *first[1:])


def _one_row(tensor: Tensor) -> Tensor:
    shape = (1, *tensor.shape[1:])
    return Tensor(tensor.name, tensor.datatype, shape, bytes(count(shape) * (ITEM_BYTES[tensor.datatype] or 4)))


def _no_rows(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.datatype, (0, *tensor.shape[1:]), b"")
