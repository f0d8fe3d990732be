"""Sends spans to an OpenTelemetry collector: OTLP over HTTP in its JSON form, from a thread, without any library."""

from __future__ import annotations

import logging
import queue
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from orchestrator import __version__
from orchestrator.core.redact import redact_url
from orchestrator.serving.observe.otlp_settings import OtlpSettings
from orchestrator.serving.observe.tracing import Context, Span

_log: Final = logging.getLogger(__name__)
_CHUNKS: Final = 32
_CHUNK_SPANS: Final = 2000
_TIMEOUT_S: Final = 5.0
_ERROR: Final = 2


class Exporter:
    """Collects spans until `flush`, which hands them to a thread that sends. What the collector does not take in time is dropped."""

    def __init__(self, settings: OtlpSettings) -> None:
        self._settings = settings
        self._spans: list[Span] = []
        self._chunks: queue.Queue[list[Span] | None] = queue.Queue(_CHUNKS)
        self.sent = self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._thread.start()

    def add(self, span: Span) -> None:
        """Take one span."""
        if len(self._spans) < _CHUNK_SPANS:
            self._spans.append(span)
        else:
            self.dropped += 1

    def flush(self) -> None:
        """Hand over what has come together; call this once a second or so."""
        spans, self._spans = self._spans, []
        if spans:
            try:
                self._chunks.put_nowait(spans)
            except queue.Full:
                self.dropped += len(spans)

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what is left."""
        self.flush()
        try:
            self._chunks.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _run(self) -> None:
        failing = False
        while (spans := self._chunks.get()) is not None:
            error = self._send(spans)
            if error:
                self.dropped += len(spans)
                if not failing:
                    _log.warning("spans are dropped: %s: %s", redact_url(self._settings.url), error)
            else:
                self.sent += len(spans)
            failing = bool(error)

    def _send(self, spans: list[Span]) -> str:
        """Return why it failed, or nothing."""
        headers = {"content-type": "application/json", **self._settings.headers}
        request = urllib.request.Request(self._settings.url, payload(spans, self._settings.resource), headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - http or https: checked where it is set
                answer.read(4096)
        except (OSError, ValueError) as error:
            return str(error)
        return ""


def payload(spans: Sequence[Span], resource: Mapping[str, str]) -> bytes:
    """Return an `ExportTraceServiceRequest` in the JSON of OTLP/HTTP: ids in hexadecimal, 64-bit numbers as texts."""
    scope = {"scope": {"name": "orchestrate.router", "version": __version__}, "spans": [_span(span) for span in spans]}
    return orjson.dumps({"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}]})


def _span(span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {
        **_ids(span.context),
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
    }
    if span.parent:
        found["parentSpanId"] = span.parent
    if span.links:
        found["links"] = [_ids(context) for context in span.links]
    if span.error:
        found["status"] = {"code": _ERROR, "message": span.error}
    return found


def _ids(context: Context) -> dict[str, str]:
    return {"traceId": context.trace, "spanId": context.span}


def _attributes(values: Mapping[str, str | int | bool]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: str | int | bool) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}
