"""Who looks at requests as they end, beside the counters: the access log and the tracer. Without them nothing is loaded or called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.serving.observe.exposition import Family
from orchestrator.serving.observe.origin import NameToken

if TYPE_CHECKING:
    from orchestrator.serving.observe.access_log import AccessLog
    from orchestrator.serving.observe.otlp import Exporter
    from orchestrator.serving.observe.record import Recorder

LOG_FILE: Final = "access.log"
_EXPORT_S: Final = 0.5


class Observers:
    """Opens what the settings ask for and hooks it into the recorder.

    Args:
        recorder: Tells them how requests end.
        state: Folder of the access log.
        sample: See `AccessLog`; 0 opens none.
        otlp_endpoint: See `RouterSettings`; the variables of OpenTelemetry may name one in its place.
        name_token: Names whom a request came from.
    """

    def __init__(
        self, recorder: Recorder, *, state: Path, sample: float, otlp_endpoint: str, name_token: NameToken
    ) -> None:
        self.log: AccessLog | None = None
        self.exporter: Exporter | None = None
        self._exported_at = 0.0
        if sample > 0:
            from orchestrator.serving.observe.access_log import AccessLog

            self.log = AccessLog(state / LOG_FILE, sample, name_token)
            recorder.observers.append(self.log)
        self._open_tracer(recorder, otlp_endpoint)

    def _open_tracer(self, recorder: Recorder, endpoint: str) -> None:
        from orchestrator.serving.observe.otlp_settings import otlp_settings

        settings = otlp_settings(endpoint)
        if settings is not None:
            from orchestrator.serving.observe.otlp import Exporter
            from orchestrator.serving.observe.tracing import Tracer

            self.exporter = Exporter(settings)
            recorder.tracer = Tracer(self.exporter, settings.ratio)
            recorder.observers.append(recorder.tracer)

    def tick(self, now: float) -> None:
        """Hand over what has come together; call this every 50 ms or so with `time.monotonic()`."""
        if self.log is not None:
            self.log.flush()
        if self.exporter is not None and now - self._exported_at > _EXPORT_S:
            self._exported_at = now
            self.exporter.flush()

    def close(self) -> None:
        """Write and send what is left, as far as that goes in a moment."""
        if self.log is not None:
            self.log.close()
        if self.exporter is not None:
            self.exporter.close()

    def families(self, router: str) -> Sequence[Family]:
        """Return how much was written and what was dropped."""
        labels, found = {"router": router}, list[Family]()
        rows: list[tuple[str, str, int]] = []
        if self.log is not None:
            rows += [
                ("orchestrate_access_log_lines_total", "Lines of the access log.", self.log.written),
                ("orchestrate_access_log_dropped_total", "Lines that a slow or full disk has cost.", self.log.lost),
            ]
        if self.exporter is not None:
            rows += [
                ("orchestrate_spans_sent_total", "Spans that the collector has taken.", self.exporter.sent),
                ("orchestrate_spans_dropped_total", "Spans that it has not.", self.exporter.dropped),
            ]
        for name, about, value in rows:
            family = Family(name, "counter", about)
            family.add(labels, value)
            found.append(family)
        return found
