"""The worker's voice: one JSON object a line, appended and flushed; the engine reads along."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

HEARTBEAT_S: Final = 2.0


class EventWriter:
    """Appends events; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def write(self, event: str, step: str = "", **payload: Any) -> None:
        """Append one event."""
        line = json.dumps({"t": time.time(), "event": event, "step": step, **payload}, allow_nan=True)
        with self._lock:
            self._file.write(line + "\n")

    def start_heartbeat(self) -> None:
        """Say every two seconds that we live; a missed beat opens an investigation, it never fails a step by itself."""

        def beat() -> None:
            while not self._stop.wait(HEARTBEAT_S):
                self.write("heartbeat")

        threading.Thread(target=beat, name="heartbeat", daemon=True).start()

    def close(self) -> None:
        """Stop the heartbeat and close the file."""
        self._stop.set()
        with self._lock:
            self._file.close()


class BoundEvents:
    """The `StepEvents` of one running step."""

    def __init__(self, writer: EventWriter, step: str) -> None:
        self._writer = writer
        self._step = step

    def progress(self, done: float, total: float, text: str = "") -> None:
        """Report `done` of `total`."""
        self._writer.write("progress", self._step, done=done, total=total, text=text)

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """Report one value."""
        self._writer.write("metric", self._step, name=name, value=float(value), at=int(step))

    def message(self, text: str) -> None:
        """Say one line."""
        self._writer.write("message", self._step, text=text)


class EventReader:
    """Reads what a worker appended since the last call; a torn last line waits for its rest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the new events."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        end = data.rfind(b"\n") + 1
        self._offset += end
        for line in data[:end].splitlines():
            yield json.loads(line)
