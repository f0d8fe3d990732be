"""Heads of HTTP requests, remembered by their bytes: a client sends the same one again and again, and it is parsed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from orchestrator.serving.protocol.limits import Limits

_CACHE: Final = 1024
_CACHED_BYTES: Final = 4096
_END: Final = b"\r\n\r\n"
_PLAIN: Final = frozenset((b"transfer-encoding", b"expect", b"upgrade"))
"""Headers that make a request more than a head and as many bytes of body as it says."""


class Head:
    """What the head of a request says; shared by all requests that begin with the same bytes, so never changed.

    Attributes:
        headers: By name in small letters.
        body_bytes: Content length; 0 where the body's length is not known in advance.
    """

    __slots__ = ("body_bytes", "headers", "keep_alive", "method", "target")

    def __init__(
        self,
        method: bytes = b"",
        target: bytes = b"",
        headers: Mapping[bytes, bytes] | None = None,
        *,
        keep_alive: bool = False,
    ) -> None:
        self.method = method
        self.target = target
        self.headers: Mapping[bytes, bytes] = headers or {}
        self.body_bytes = int(self.headers.get(b"content-length", b"0"))
        self.keep_alive = keep_alive


NO_HEAD: Final = Head()
"""Of a request that has none, or none that is whole."""


class Heads:
    """The heads that one listener has accepted."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, data: bytes, place: int) -> tuple[Head | None, int]:
        """Return the head that begins at `place`, where it is known, and where it ends."""
        end = data.find(_END, place, place + _CACHED_BYTES) + 4
        return self._known.get(data[place:end]), end

    def learn(self, data: bytes, lines: int, head: Head) -> None:
        """Remember a head of so many header lines that the parser has found at the start of `data`."""
        raw = data[: data.find(_END, 0, _CACHED_BYTES) + 4]
        # Only where the parser and we agree where it ends: one line for the request and for each header, and the empty one,
        # each ended by CR LF and nothing else.
        plain = lines + 2 == raw.count(b"\r\n") == raw.count(b"\n")
        if plain and head.keep_alive and _PLAIN.isdisjoint(head.headers):
            if len(self._known) >= _CACHE:
                self._known.clear()
            self._known[raw] = head


def head_fault(headers: Mapping[bytes, bytes], version: str, size: int, limits: Limits) -> tuple[int, str] | None:
    """Return status and message of what is wrong with a head of `size` bytes; None where nothing is."""
    if size > limits.head:
        return 431, f"request headers are over {limits.head} bytes"
    if b"host" not in headers and version == "1.1":
        return 400, "header host is missing"
    if int(headers.get(b"content-length", b"0")) > limits.body:
        return 413, f"body is over {limits.body} bytes"
    if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
        return 417, "only expect: 100-continue is supported"
    return None
