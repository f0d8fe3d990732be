"""The queue of one generation: order by priority, batches of equal shapes, and what is dropped before it reaches a device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from orchestrator.serving.dispatch.lanes import Request

if TYPE_CHECKING:
    from orchestrator.serving.protocol.signature import Signature
    from orchestrator.serving.runtimes.api import Bucket

MAX_BATCH_BYTES: Final = 64 << 20
"""Requests are joined up to this size; a single larger one goes alone."""
_LOOK_AHEAD: Final = 256
"""Requests of other shapes that a batch may pass over; the head of the queue always goes first, so none starves."""


def enqueue(queue: deque[Request], request: Request) -> None:
    """Append behind all of the same or a more urgent priority; what has already run once keeps its place."""
    place = len(queue)
    while place and queue[place - 1].priority > request.priority and not queue[place - 1].attempts:
        place -= 1
    if place == len(queue):
        queue.append(request)
    else:
        queue.insert(place, request)


def rows_by_shape(buckets: Sequence[Bucket], signature: Signature) -> dict[tuple[tuple[int, ...], ...], int]:
    """Return the most rows of a batch by the inputs' shapes without axis 0; empty where rows have no meaning."""
    found: dict[tuple[tuple[int, ...], ...], int] = {}
    if signature.max_batch > 1:
        for bucket in buckets:
            shapes = [bucket[spec.name] for spec in signature.inputs]
            key = tuple(shape[1:] for shape in shapes)
            found[key] = max(found.get(key, 1), shapes[0][0])
    return found


def take_batch(queue: deque[Request], max_batch: int, now: float) -> tuple[list[Request], list[Request]]:
    """Take the first request and those behind it that may run with it.

    Returns:
        The batch, and what nobody waits for any more: answered, gone or too late.
    """
    taken, dropped, passed = list[Request](), list[Request](), list[Request]()
    rows = size = 0
    while queue and len(passed) < _LOOK_AHEAD:
        head = queue.popleft()
        if _useless(head, now):
            dropped.append(head)
            continue
        fitted = head.fitted
        # What has already cost one replica runs alone: if it is the cause, it takes no others with it.
        if taken and (head.attempts or fitted.key != taken[0].fitted.key):
            passed.append(head)
            continue
        if taken and (rows + fitted.rows > max_batch or size + fitted.size_bytes > MAX_BATCH_BYTES):
            passed.append(head)
            break
        taken.append(head)
        rows += fitted.rows
        size += fitted.size_bytes
        if head.attempts or len(taken) >= max_batch or rows >= max_batch:
            break
    queue.extendleft(reversed(passed))
    return taken, dropped


def take_useless(queue: deque[Request], now: float) -> list[Request]:
    """Take out what nobody waits for any more: answered, gone or too late."""
    dropped = [request for request in queue if _useless(request, now)]
    if dropped:
        kept = [request for request in queue if not _useless(request, now)]
        queue.clear()
        queue.extend(kept)
    return dropped


def _useless(request: Request, now: float) -> bool:
    return request.caller.done or request.caller.gone or request.deadline <= now
