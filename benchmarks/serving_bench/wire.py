"""The client's half of HTTP/1.1 and of gRPC over HTTP/2, with requests that were rendered before the clock ran."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_OK: Final = b"HTTP/1.1 200"
BROKEN: Final = -1
"""Status of an answer that breaks the protocol."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        wire: HTTP/1.1: the whole of it. gRPC: the message alone.
        needle: Must be in the answer's body once its spaces are gone; empty where anything will do.
    """

    wire: bytes
    needle: bytes


class Http1:
    """Reads answers of one connection, one at a time.

    `size` is that of the last good answer, most of which need no parsing; `length` that of its body, as it came: heads of
    one server may differ.
    """

    def __init__(self, _path: str = "") -> None:
        self._buffer = b""
        self.size = self.length = 0
        self.answer = b""
        self.reply = b""

    def greeting(self) -> bytes:
        """Return what a connection begins with."""
        return b""

    def render(self, request: Request) -> bytes:
        """Return the bytes to send."""
        return request.wire

    def feed(self, data: bytes) -> int:
        """Take bytes; returns the status once an answer is whole, else 0. `answer` is then the whole of it."""
        if not self._buffer and len(data) == self.size and data.startswith(_OK):
            self.answer = data
            return 200
        self._buffer += data
        return self._parse()

    def _parse(self) -> int:
        data = self._buffer
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return 0
        head = data[:end]
        length = _LENGTH.search(head)
        if length:
            size = end + int(length.group(1))
        elif _CHUNKED.search(head):
            size = len(data) if data.endswith(b"\r\n0\r\n\r\n") else len(data) + 1
        else:
            return BROKEN
        if len(data) < size:
            return 0
        if len(data) > size or not head.startswith(b"HTTP/1.1 "):
            return BROKEN
        self._buffer, self.answer = b"", data
        status = int(head[9:12])
        if status == 200:
            self.size, self.length = size, size - end
        return status


_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS: Final = bytes.fromhex("000012 04 00 00000000 0002 00000000 0004 7fffffff 0005 00ffffff")
_WINDOW: Final = bytes.fromhex("000004 08 00 00000000 7fff0000")
_DATA, _HEADERS, _RESET, _SETTING, _PING, _AWAY = 0, 1, 3, 4, 6, 7
_END, _ACK = 1, 1
_MAX_FRAME: Final = 16_384


class Grpc:
    """One call at a time on one HTTP/2 connection. Requests must fit the window that every server opens with: 64 KiB."""

    def __init__(self, path: str) -> None:
        self._head = _header_block(path)
        self._stream = -1
        self._buffer = b""
        self._body: list[bytes] = []
        self.size = self.length = 0
        self.answer = b""
        self.reply = b""

    def greeting(self) -> bytes:
        """Return preface, settings and a window that no run fills."""
        return _PREFACE + _SETTINGS + _WINDOW

    def render(self, request: Request) -> bytes:
        """Return the bytes of a call on the next stream."""
        self._stream += 2
        message = struct.pack(">BI", 0, len(request.wire)) + request.wire
        frames = [_frame(_HEADERS, 4, self._stream, self._head)]
        for start in range(0, len(message), _MAX_FRAME):
            piece = message[start : start + _MAX_FRAME]
            frames.append(_frame(_DATA, _END if start + _MAX_FRAME >= len(message) else 0, self._stream, piece))
        return b"".join(frames)

    def feed(self, data: bytes) -> int:
        """Take bytes; returns 200 once a call has its message and its trailers, 500 for trailers without one."""
        buffer = self._buffer + data if self._buffer else data
        at, found, end = 0, 0, len(buffer)
        while end - at >= 9:
            size = buffer[at] << 16 | buffer[at + 1] << 8 | buffer[at + 2]
            if end - at < 9 + size:
                break
            kind, stream = buffer[at + 3], int.from_bytes(buffer[at + 5 : at + 9])
            if stream not in (0, self._stream) and kind in (_DATA, _HEADERS):
                return BROKEN  # the answer to a call that was answered already
            found = self._frame(kind, buffer[at + 4], buffer[at + 9 : at + 9 + size]) or found
            at += 9 + size
        self._buffer = buffer[at:]
        return found

    def _frame(self, kind: int, flags: int, payload: bytes) -> int:
        if kind == _DATA:
            self._body.append(payload)
        elif kind == _HEADERS and flags & _END:
            self.answer, self._body = b"".join(self._body), []
            self.size = self.length = len(self.answer)
            return 200 if self.size > 5 else 500
        elif kind == _SETTING and not flags & _ACK:
            self.reply += _frame(_SETTING, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self.reply += _frame(_PING, _ACK, 0, payload)
        elif kind in (_RESET, _AWAY):
            return BROKEN
        return 0


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _header_block(path: str) -> bytes:
    """HPACK without the dynamic table, so that every call's block is the same."""

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    fixed = b"\x83\x86" + b"\x04" + text(path) + b"\x01" + text("127.0.0.1")
    return fixed + b"\x0f\x10" + text("application/grpc") + b"\x00" + text("te") + text("trailers")
