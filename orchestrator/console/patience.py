"""The console's connections: so many, and none for longer than a person with a browser needs.

uvicorn's own time-out begins after an answer: whoever says nothing, or half a request, would keep a place for ever.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_log: Final = logging.getLogger(__name__)
MOST_CONNECTIONS: Final = 64
REQUEST_S: Final = 10.0
"""For a whole request, from the connection or from the answer before it."""
ANSWER_S: Final = 60.0
"""For the answer, until the client has taken it."""
_TICKS: Final = 4
"""Looks in each `REQUEST_S`; a connection may last this part longer."""


_Protocol: Any = AutoHTTPProtocol  # one of two classes, as uvicorn chose


class PatientProtocol(_Protocol):
    """uvicorn's protocol, which ends a connection that takes too long, and at once what comes when all places are taken."""

    request_s = REQUEST_S
    answer_s = ANSWER_S
    most = MOST_CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Called by the event loop."""
        self._clock = asyncio.get_running_loop()
        self._asking, self._since = True, self._clock.time()
        self._timer: asyncio.TimerHandle | None = None
        super().connection_made(transport)  # pyright: ignore[reportUnknownMemberType]
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._tick()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        super().data_received(data)  # pyright: ignore[reportUnknownMemberType]
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)  # pyright: ignore[reportUnknownMemberType]

    def _look(self) -> None:
        cycle = self.cycle
        asking = cycle is None or cycle.more_body or cycle.response_complete
        if asking != self._asking:
            self._asking, self._since = asking, self._clock.time()

    def _tick(self) -> None:
        self._look()
        limit_s = self.request_s if self._asking else self.answer_s
        if self._clock.time() - self._since >= limit_s:
            _log.debug("a connection is ended after %s s", limit_s)
            self.transport.abort()
        else:
            self._timer = self._clock.call_later(self.request_s / _TICKS, self._tick)
