"""OpenTelemetry spans of requests: what the record says afterwards, as spans that an OTLP collector takes.

The span of a request is named `router.request` and has `router.queue` and `replica.compute` (a stage: its name) below it. A batch of
several requests has a span of its own, `replica.batch`, in a trace of its own, that links to the requests' spans, as they link to it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from orchestrator.serving.events import Ended
from orchestrator.serving.origin import origin_of, trace_header

if TYPE_CHECKING:
    from orchestrator.serving.lanes import Batch, Caller, Replica
    from orchestrator.serving.otlp import Exporter

_PARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_INTERNAL, _SERVER = 1, 2


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
        self._batch: Context | None = None

    def batched(self, batch: Batch, replica: Replica, now: float, compute_us: int) -> None:
        """A batch has come back; its requests end next. `now` is Unix time."""
        self._open.clear()
        self._batch = None
        if len(batch.requests) > 1:
            linked = [c for request in batch.requests if (c := self._sampled(request.caller)) is not None]
            if linked:
                self._batch = Context(_new(32), _new(16))
                end_ns = int(now * 1e9)
                span = Span("replica.batch", self._batch, "", end_ns - compute_us * 1000, end_ns, links=tuple(linked))
                lane = batch.requests[0].lane
                span.attributes |= {"orchestrate.endpoint": lane.endpoint, "orchestrate.replica": replica.name}
                span.attributes |= {"orchestrate.batch.requests": len(batch.requests)}
                span.attributes |= {"orchestrate.batch.rows": sum(batch.rows), "orchestrate.device": replica.device}
                self.exporter.add(span)

    def _sampled(self, caller: Caller) -> Context | None:
        """Return the context of the request's span; the same for the same caller until the next batch."""
        known = self._open[id(caller)] if id(caller) in self._open else self._begin(trace_header(caller))
        self._open[id(caller)] = known
        return known[0] if known else None

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
        found = self._open.pop(id(caller))
        if found is not None:
            for span in self._spans(row, caller, *found):
                self.exporter.add(span)

    def _spans(self, row: Ended, caller: Caller, context: Context, parent: str) -> Iterable[Span]:
        t, endpoint, number, stage, status, error, generation, replica, batch, queue_s, compute_us, total_s, _ = row
        end_ns = int(t * 1e9)
        start_ns = end_ns - int(total_s * 1e9)
        origin = origin_of(caller)
        whole = Span("router.request", context, parent, start_ns, end_ns, _SERVER, error=error)
        whole.attributes |= {"orchestrate.endpoint": endpoint, "orchestrate.generation": number}
        whole.attributes |= {
            "orchestrate.stage": stage,
            "orchestrate.status": status,
            "network.protocol.name": origin.protocol,
        }
        if generation is not None:
            whole.attributes |= {"orchestrate.bundle": generation.bundle, "orchestrate.device": generation.device}
        if origin.request_id:
            whole.attributes["orchestrate.request.id"] = origin.request_id
        yield whole
        sent_ns = start_ns + int(queue_s * 1e9)
        yield Span("router.queue", Context(context.trace, _new(16)), context.span, start_ns, sent_ns)
        if replica:
            links = (self._batch,) if self._batch is not None else ()
            name = "replica.compute" if stage == "model" else f"replica.{stage}"
            begun_ns = max(sent_ns, end_ns - compute_us * 1000)
            span = Span(
                name, Context(context.trace, _new(16)), context.span, begun_ns, end_ns, links=links, error=error
            )
            span.attributes |= {"orchestrate.replica": replica, "orchestrate.batch.rows": batch}
            yield span


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
