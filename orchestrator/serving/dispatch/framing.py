"""Batches to frames and replies to the pieces of each request."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.serving.dispatch.lanes import Batch, Replica
from orchestrator.serving.link.frames import Kind, LinkError, encode_tensors
from orchestrator.serving.link.wire import Statuses
from orchestrator.serving.protocol.answer import split_rows
from orchestrator.serving.protocol.signature import misfit
from orchestrator.serving.protocol.tensors import Buffer, Tensor


def encode_batch(batch: Batch, batches: bool) -> list[Buffer]:
    """Return the frame of a batch: row-major rows are joined by writing one after the other, so nothing is copied."""
    first = batch.requests[0].fitted
    total = sum(batch.rows)
    tensors: list[tuple[str, str, tuple[int, ...], list[Buffer]]] = []
    for place, tensor in enumerate(first.inputs):
        shape = (total, *tensor.shape[1:]) if batches else tensor.shape
        pieces = [request.fitted.inputs[place].data for request in batch.requests]
        tensors.append((tensor.name, tensor.datatype, shape, pieces))
    return encode_tensors(Kind.BATCH, {"rows": batch.rows}, "inputs", tensors, number=batch.number)


def pieces_of(replica: Replica, batch: Batch, statuses: Statuses, outputs: list[Tensor]) -> Iterator[list[Tensor]]:
    """Return the outputs of each request that succeeded, in order.

    Raises:
        LinkError: They are not what the replica has registered, or not as many rows.
    """
    rows = [row for row, error in zip(batch.rows, statuses.errors, strict=True) if error is None]
    if not rows:
        return iter(())
    wrong = misfit(outputs, replica.signature)
    if wrong:
        raise LinkError(f"a reply with {wrong}")
    if replica.signature.max_batch == 1:
        return iter([outputs])
    try:
        return iter(split_rows(outputs, rows))
    except ValueError as error:
        raise LinkError(str(error)) from error
