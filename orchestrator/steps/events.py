"""The worker's voice: one JSON object a line, appended and flushed; the engine reads along."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.core.errors import UserCodeError
from orchestrator.core.tail import LineTail

HEARTBEAT_S: Final = 2.0
_LONGEST_NAME: Final = 200
_LONGEST_TEXT: Final = 2000


def check_metric(name: object, value: object, step: str) -> float:
    """Return a metric's value as a float.

    Raises:
        UserCodeError: The name is no short line of text, or the value is no finite number.
    """
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name.strip()) <= _LONGEST_NAME:
        raise UserCodeError(
            f"a metric is named {name!r:.80}",
            place=step,
            hint=f"name it by 1 to {_LONGEST_NAME} printable characters, e.g. accuracy",
        )
    try:
        number = float(cast("float", value))
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserCodeError(
            f"metric {name} is {value!r:.80}", place=step, hint="a metric is a finite number; look for a division by 0"
        )
    return number


class EventWriter:
    """Appends events; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def write(self, event: str, step: str = "", **payload: Any) -> None:
        """Append one event; what no text file, database or terminal takes (lone surrogates, NUL) becomes `?`."""
        body = _plain({"t": time.time(), "event": event, "step": step, **payload})
        line = json.dumps(body, allow_nan=False)
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
        """Report `done` of `total`; what is no finite number counts as 0."""
        done, total = (float(n) if math.isfinite(n) else 0.0 for n in (done, total))
        self._writer.write("progress", self._step, done=done, total=total, text=str(text)[:_LONGEST_TEXT])

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """Report one value.

        Raises:
            UserCodeError: Not a metric.
        """
        self._writer.write("metric", self._step, name=name, value=check_metric(name, value, self._step), at=int(step))

    def message(self, text: str) -> None:
        """Say one line."""
        self._writer.write("message", self._step, text=str(text)[:_LONGEST_TEXT])


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "?")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN, and a number that is none must not stop the report of it
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(item) for key, item in cast("dict[object, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    return value


class EventReader:
    """Reads what a worker appended since the last call."""

    def __init__(self, path: Path) -> None:
        self._tail = LineTail(path)

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the new events."""
        for line in self._tail.read():
            yield json.loads(line)
