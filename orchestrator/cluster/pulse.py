"""Is a router's event loop alive? A process that exists but answers nobody still gets its share of the connections."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Final

_EVERY_S: Final = 2.0
_QUESTION: Final = b"GET /v2/health/live HTTP/1.1\r\nhost: router\r\nconnection: close\r\n\r\n"


class Pulse:
    """Asks at a Unix socket now and then, and never waits for the answer: the supervisor has other parts to watch."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._asked = self._next = 0.0

    def silent_s(self, now: float) -> float:
        """Look once; returns for how long a question has been without an answer, seconds."""
        if self._socket is None:
            if now < self._next:
                return 0.0
            self._ask(now)
            return 0.0
        try:
            self._socket.recv(64)
        except BlockingIOError:
            return now - self._asked
        except OSError as error:
            if error.errno in (errno.ENOTCONN, errno.EINVAL):
                return now - self._asked  # the question could not even be asked
        self.forget(now)
        return 0.0

    def forget(self, now: float = 0.0) -> None:
        """Drop an open question."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._next = None, now + _EVERY_S

    def _ask(self, now: float) -> None:
        question = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        question.setblocking(False)
        try:
            question.connect(self._path)
        except BlockingIOError:
            pass  # nobody takes connections any more
        except OSError:
            question.close()
            self._next = now + _EVERY_S
            return
        with contextlib.suppress(OSError):
            question.sendall(_QUESTION)
        self._socket, self._asked = question, now
