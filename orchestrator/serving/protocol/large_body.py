"""A large body goes from the kernel to where it stays: no pieces that are put together afterwards."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from orchestrator.serving.protocol.connection import Connection

LARGE_BYTES: Final = 1 << 16
"""What is missing of a body that is worth a buffer of its own."""


class LargeBody(asyncio.BufferedProtocol):
    """Stands in for a connection while the rest of a body of known size arrives.

    The kernel gives memory only to pages that are written: a length that a client merely promises costs nothing.

    Args:
        connection: Whose body it is.
        first: What has arrived.
        size: Of the whole body, bytes.
    """

    def __init__(self, connection: Connection, first: bytes, size: int) -> None:
        self._connection = connection
        self._body = np.empty(size, np.uint8).data
        self._filled = len(first)
        self._body[: self._filled] = first

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the name is asyncio's
        """Called by the event loop."""
        return self._body[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the event loop."""
        self._filled += nbytes
        self._connection.grown(nbytes, self._body if self._filled == len(self._body) else None)

    def eof_received(self) -> bool | None:
        """Called by the event loop."""
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """Called by the event loop."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self._connection.resume_writing()
