"""What an agent says of its replicas and models."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from orchestrator.serving.link.frames import Frame
from orchestrator.serving.link.wire_fields import load_of, rows_of, seconds_of, stage_of, text_of, whole_of


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What an agent says of one replica, or of a model of a lazy pool whether it is loaded or not.

    Attributes:
        state: starting | ready | failed | stopping, and for a lazy model that has been proven: cold | loading.
        restarts: Ends of its process, good or bad, in the agent's life.
        failures: Bad ends in a row since it was placed here; what a former placement of the same build did does not count.
        memory_bytes: What it holds, or held when it was loaded last.
        load: always | lazy.
        proven: A lazy model that has been loaded and checked before, and can be again.
        loads: How often it was loaded.
        unloads: How often it made room.
        load_s: What its last load took.
        retry_s: Of one that cannot be loaded: after how long it may be tried again.
    """

    endpoint: str
    bundle: str
    state: str
    restarts: int
    pid: int
    error: str
    log_tail: str
    variant: str = ""
    stage: str = "model"
    load: str = "always"
    proven: bool = False
    memory_bytes: int = 0
    loads: int = 0
    unloads: int = 0
    load_s: float = 0.0
    retry_s: float = 0.0
    failures: int = 0

    def to_json(self) -> dict[str, object]:
        """Return its form in a report frame and in the router's status."""
        return {name: getattr(self, name) for name in _REPORT}


_REPORT: Final = tuple(field.name for field in fields(ReplicaReport))


def read_report(frame: Frame) -> tuple[int, list[ReplicaReport]]:
    """Parse a report frame into (table version that the agent works on, replicas).

    Raises:
        LinkError: A field is missing or of the wrong kind.
    """
    reports = [
        ReplicaReport(
            text_of(row, "endpoint"),
            text_of(row, "bundle"),
            text_of(row, "state"),
            whole_of(row, "restarts"),
            whole_of(row, "pid"),
            text_of(row, "error", empty=True),
            text_of(row, "log_tail", empty=True),
            text_of(row, "variant", empty=True),
            stage_of(row),
            load_of(row),
            row.get("proven") is True,
            *(whole_of({name: row.get(name, 0)}, name) for name in ("memory_bytes", "loads", "unloads")),
            *(seconds_of(row, name) for name in ("load_s", "retry_s")),
            failures=whole_of({"failures": row.get("failures", 0)}, "failures"),
        )
        for row in rows_of(frame.head, "replicas")
    ]
    return whole_of(frame.head, "version"), reports
