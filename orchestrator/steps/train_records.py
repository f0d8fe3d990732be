"""The stream from a training to the person who watches: NDJSON lines, appended by rank 0, read while it trains.

    {"metric": "loss", "value": 0.31, "step": 4}
    {"epoch": 4, "of": 12}                          written after the checkpoint of epoch 4 was committed

A training that resumes may write a line again; the reader passes each (name, step) on once.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.core.tail import LineTail
from orchestrator.steps.api import StepEvents

_POLL_S: Final = 0.2


def metric_record(name: str, value: float, step: int) -> dict[str, object]:
    """Return the line of one metric."""
    return {"metric": name, "value": value, "step": step}


def append_records(path: Path, records: list[dict[str, object]]) -> None:
    """Append lines with one write; a torn line that a killed writer left is closed first."""
    if not records:
        return
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())


class RecordTail:
    """Passes new lines on to `events`, in a thread, until closed; closing drains what is left.

    Use as a context manager.
    """

    def __init__(self, path: Path, events: StepEvents) -> None:
        self._tail = LineTail(path)
        self._events = events
        self._seen: set[tuple[str, int]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="train-records", daemon=True)
        self.last: dict[str, float] = {}
        """The newest value of each metric."""
        self.epochs = 0
        """How many epochs are committed."""

    def __enter__(self) -> RecordTail:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._drain()

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._drain()

    def _drain(self) -> None:
        for line in self._tail.read():
            self._pass_on(line)

    def _pass_on(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            return  # torn by a kill; its epoch was not committed, or its metrics are written again on resume
        if isinstance(record, dict):
            found = cast("Mapping[str, Any]", record)
            if "metric" in found:
                self._metric(found)
            elif "epoch" in found:
                self._epoch(found)

    def _metric(self, record: Mapping[str, Any]) -> None:
        try:
            name, value, step = str(record["metric"]), float(record["value"]), int(record.get("step", 0))
        except (KeyError, TypeError, ValueError):
            return
        if (name, step) in self._seen or not math.isfinite(value):
            return
        self._seen.add((name, step))
        self.last[name] = value
        self._events.metric(name, value, step)

    def _epoch(self, record: Mapping[str, Any]) -> None:
        done, total = int(record["epoch"]) + 1, int(record.get("of", 0))
        if done > self.epochs:
            self.epochs = done
            self._events.progress(done, max(total, done), f"epoch {done} of {max(total, done)}")
