"""OpenTelemetry spans of requests: what the record says afterwards, as spans that an OTLP collector takes.

The span of a request is named `router.request`. Below it every stage has a `router.queue` and a span of its replica: `replica.compute` of
the model, `replica.preprocess`, `replica.postprocess`. A batch of several requests has a span of its own besides, `replica.batch`, in a
trace of its own, that links to the requests' spans, as their replica's spans link to it.
"""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from orchestrator.serving.observe.events import Ended
from orchestrator.serving.observe.origin import origin_of, outermost, trace_header
from orchestrator.serving.serve_settings import MODEL

if TYPE_CHECKING:
    from orchestrator.serving.dispatch.lanes import Batch, Caller, Replica
    from orchestrator.serving.observe.otlp import Exporter

_PARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_INTERNAL, _SERVER = 1, 2
_MOST_OPEN: Final = 20_000


@dataclass(frozen=True, slots=True)
class Context:
    """A place in a trace; hexadecimal, as the header has it."""

    trace: str
    span: str


@dataclass(slots=True)
class Span:
    """One finished span; times are Unix nanoseconds."""

    name: str
    context: Context
    parent: str
    start_ns: int
    end_ns: int
    kind: int = _INTERNAL
    attributes: dict[str, str | int | bool] = field(default_factory=dict[str, "str | int | bool"])
    links: tuple[Context, ...] = ()
    error: str = ""


class Tracer:
    """Makes the spans of sampled requests.

    Args:
        exporter: Takes them.
        ratio: Share of the requests without a `traceparent` that are sampled; one with it is as its sender says.
    """

    def __init__(self, exporter: Exporter, ratio: float) -> None:
        self.exporter = exporter
        self._ratio = ratio
        self._open: dict[int, tuple[Context, str] | None] = {}

    def batched(self, batch: Batch, replica: Replica, compute_us: int) -> None:
        """A batch has come back; the requests that it ends are told to `ended` after this."""
        waiting = [request for request in batch.requests if not request.caller.done]
        sampled = [(request, c) for request in waiting if (c := self._sampled(request.caller)) is not None]
        if not sampled:
            return
        end_ns, now_ns = time.time_ns(), time.monotonic_ns()
        lane = batch.requests[0].lane
        facts = {"orchestrate.endpoint": lane.endpoint, "orchestrate.replica": replica.name}
        facts |= {"orchestrate.stage": lane.stage, "orchestrate.device": replica.device}
        counts = {"orchestrate.batch.requests": len(batch.requests), "orchestrate.batch.rows": sum(batch.rows)}
        links: tuple[Context, ...] = ()
        if len(batch.requests) > 1:
            links = (Context(_new(32), _new(16)),)
            begun_ns = end_ns - compute_us * 1000
            requests = tuple(context for _, context in sampled)
            self.exporter.add(
                Span("replica.batch", links[0], "", begun_ns, end_ns, _INTERNAL, {**facts, **counts}, requests)
            )
        name = "replica.compute" if lane.stage == MODEL else f"replica.{lane.stage}"
        for request, context in sampled:
            arrived_ns, sent_ns = (end_ns - now_ns + int(t * 1e9) for t in (request.arrived, request.sent))
            queue, compute = Context(context.trace, _new(16)), Context(context.trace, _new(16))
            stage = {"orchestrate.stage": lane.stage}
            self.exporter.add(Span("router.queue", queue, context.span, arrived_ns, sent_ns, _INTERNAL, {**stage}))
            begun_ns = max(sent_ns, end_ns - compute_us * 1000)
            self.exporter.add(
                Span(name, compute, context.span, begun_ns, end_ns, _INTERNAL, {**facts, **counts}, links)
            )

    def _sampled(self, caller: Caller) -> Context | None:
        """Return the context of the request's span: the same for all its stages, until it has ended."""
        client = id(outermost(caller))
        if client not in self._open:
            if len(self._open) > _MOST_OPEN:
                self._open.clear()
            self._open[client] = self._begin(trace_header(caller))
        found = self._open[client]
        return found[0] if found else None

    def _begin(self, header: str) -> tuple[Context, str] | None:
        parent = read_parent(header)
        if parent is None:
            return (Context(_new(32), _new(16)), "") if random.random() < self._ratio else None
        context, sampled = parent
        return (Context(context.trace, _new(16)), context.span) if sampled else None

    def ended(self, row: Ended, caller: Caller | None) -> None:
        """A request has ended."""
        if caller is None:
            return
        self._sampled(caller)
        found = self._open.pop(id(outermost(caller)))
        if found is not None:
            self.exporter.add(_whole(row, caller, *found))


def _whole(row: Ended, caller: Caller, context: Context, parent: str) -> Span:
    t, endpoint, number, _, status, error, generation, _, _, _, _, total_s, *_ = row
    end_ns, origin = int(t * 1e9), origin_of(caller)
    span = Span("router.request", context, parent, end_ns - int(total_s * 1e9), end_ns, _SERVER, error=error)
    span.attributes |= {"orchestrate.endpoint": endpoint, "orchestrate.generation": number}
    span.attributes |= {"orchestrate.status": status, "network.protocol.name": origin.protocol}
    if generation is not None:
        span.attributes |= {"orchestrate.bundle": generation.bundle, "orchestrate.device": generation.device}
    if origin.request_id:
        span.attributes["orchestrate.request.id"] = origin.request_id
    return span


def read_parent(header: str) -> tuple[Context, bool] | None:
    """Return the sender's context and whether it samples; None where the header is absent or against the W3C's rules."""
    found = _PARENT.fullmatch(header.strip())
    if found is None or found[1] == _NO_TRACE or found[2] == _NO_SPAN:
        return None
    if header.startswith("00") and len(header.strip()) != 55:
        return None
    return Context(found[1], found[2]), bool(int(found[3], 16) & 1)


def _new(digits: int) -> str:
    return f"{random.getrandbits(digits * 4) or 1:0{digits}x}"
