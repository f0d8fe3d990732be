"""Writes down how each request ended: into the event ring and the metrics."""

from __future__ import annotations

import time

from orchestrator.serving.events import Event, EventRing
from orchestrator.serving.metrics import Metrics
from orchestrator.serving.table import Generation


class Recorder:
    """The one place where events are made."""

    def __init__(self) -> None:
        self.events = EventRing()
        self.metrics = Metrics()

    def record(
        self,
        endpoint: str,
        generation: Generation | None,
        status: int,
        error: str,
        *,
        replica: str = "",
        batch_size: int = 0,
        queue_s: float,
        compute_us: int = 0,
        total_s: float,
        synthetic: bool,
    ) -> None:
        """Record one request; `generation` is None where it ended before one was chosen."""
        event = Event(
            self.events.next_seq(),
            time.time(),
            endpoint,
            generation.generation if generation else 0,
            generation.bundle if generation else "",
            replica,
            generation.device if generation else "",
            status,
            error,
            batch_size,
            int(queue_s * 1e6),
            compute_us,
            int(total_s * 1e6),
            synthetic,
        )
        self.events.add(event)
        self.metrics.count(event)
