"""The access log: one JSON object a line for a share of the requests, and for those that failed. The event loop never waits for it."""

from __future__ import annotations

import datetime
import logging
import queue
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from orchestrator.serving.observe.events import Ended
from orchestrator.serving.observe.origin import NameToken, origin_of

if TYPE_CHECKING:
    from orchestrator.serving.dispatch.lanes import Caller

_log: Final = logging.getLogger(__name__)
_FILE_BYTES: Final = 64 << 20
_KEPT_FILES: Final = 3
_CHUNKS: Final = 64
"""Ticks that may wait for the disk; what comes after is dropped and counted."""
_ERRORS_A_SECOND: Final = 100


class AccessLog:
    """Lines collect until `flush`, which hands them to a thread that writes.

    Args:
        path: The file; the ones before it are `<path>.1` (younger) to `<path>.3`.
        sample: Share of the requests that are written; failed ones always, up to 100 a second.
        name_token: Names whom a request came from; the token itself is never written.
        file_bytes: Size at which a new file begins.
    """

    def __init__(
        self,
        path: Path,
        sample: float,
        name_token: NameToken,
        *,
        file_bytes: int = _FILE_BYTES,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._sample = sample
        self._name_token = name_token
        self._chance = chance
        self._rows: list[dict[str, object]] = []
        self._errors, self._second = 0, 0
        self._chunks: queue.Queue[tuple[bytes, int] | None] = queue.Queue(_CHUNKS)
        self._writer = _Writer(path, file_bytes, self._chunks)
        self.dropped = 0

    @property
    def written(self) -> int:
        """Lines in the file."""
        return self._writer.written

    @property
    def lost(self) -> int:
        """Lines that were meant for the file: too many errors, a slow disk, or one that is full."""
        return self.dropped + self._writer.lost

    def ended(self, row: Ended, caller: Caller | None) -> None:
        """Take a request in where it is to be logged."""
        if row[4] == 200:
            if self._chance() >= self._sample:
                return
        elif not self._room_for_error(int(row[0])):
            self.dropped += 1
            return
        self._rows.append(self._line(row, caller))

    def _room_for_error(self, second: int) -> bool:
        if second != self._second:
            self._second, self._errors = second, 0
        self._errors += 1
        return self._errors <= _ERRORS_A_SECOND

    def _line(self, row: Ended, caller: Caller | None) -> dict[str, object]:
        (
            t,
            endpoint,
            number,
            stage,
            status,
            error,
            generation,
            replica,
            batch,
            queue_s,
            compute_us,
            total_s,
            probe,
            arm,
        ) = row
        line: dict[str, object] = {
            "time": datetime.datetime.fromtimestamp(t, datetime.UTC).isoformat(timespec="milliseconds"),
            "endpoint": endpoint,
            "generation": number,
            "stage": stage,
            "status": status,
            "kind": error or "ok",
            "queue_us": int(queue_s * 1e6),
            "compute_us": compute_us,
            "total_us": int(total_s * 1e6),
            "batch": batch,
            "replica": replica,
            "device": generation.device if generation else "",
        }
        if probe:
            line["probe"] = True
        if arm is not None:
            line["traffic"] = arm.traffic
        if caller is not None:
            origin = origin_of(caller)
            line |= {"protocol": origin.protocol, "method": origin.method, "path": origin.path}
            line |= {"bytes_in": origin.bytes_in, "bytes_out": origin.bytes_out, "request_id": origin.request_id}
            line["token"] = self._name_token(origin.authorization) if origin.authorization else ""
            line["trace_id"] = origin.traceparent[3:35]
        return line

    def flush(self) -> None:
        """Hand over what has come together; call this every 50 ms or so."""
        rows = self._rows
        if not rows:
            return
        self._rows = []
        try:
            self._chunks.put_nowait((b"".join(orjson.dumps(row) + b"\n" for row in rows), len(rows)))
        except queue.Full:
            self.dropped += len(rows)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is left."""
        self.flush()
        self._writer.stop(timeout_s)


class _Writer:
    """The thread that writes, and begins a new file when one is full."""

    def __init__(self, path: Path, file_bytes: int, chunks: queue.Queue[Any]) -> None:
        self._path = path
        self._file_bytes = file_bytes
        self._chunks = chunks
        self.written = self.lost = 0
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End after what is queued."""
        try:
            self._chunks.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _run(self) -> None:
        told = False
        while (chunk := self._chunks.get()) is not None:
            text, lines = chunk
            try:
                self._rotate()
                with self._path.open("ab") as file:
                    file.write(text)
            except OSError as error:
                self.lost += lines
                if not told:
                    _log.warning("the access log %s cannot be written: %s", self._path, error)
                told = True
            else:
                self.written += lines
                told = False

    def _rotate(self) -> None:
        if not self._path.exists() or self._path.stat().st_size < self._file_bytes:
            return
        names = [self._path, *(Path(f"{self._path}.{number}") for number in range(1, _KEPT_FILES + 1))]
        for older, younger in zip(reversed(names), reversed(names[:-1]), strict=False):
            if younger.exists():
                younger.replace(older)
