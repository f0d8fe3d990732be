"""One HTTP request and its one answer, apart from the bytes that carry them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

import orjson

from orchestrator.core.lines import one_line
from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol import codings
from orchestrator.serving.protocol.answer import write_answer
from orchestrator.serving.protocol.heads import Head
from orchestrator.serving.protocol.tensors import Buffer, Tensor

if TYPE_CHECKING:
    from orchestrator.serving.dispatch.lanes import Lane, Request

JSON: Final = b"application/json"
OCTETS: Final = b"application/octet-stream"
TEXT: Final = b"text/plain; version=0.0.4; charset=utf-8"

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    499: "Client Closed Request",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_STATUS_LINES: Final = {status: f"HTTP/1.1 {status} {text}\r\n".encode() for status, text in _REASONS.items()}


class Channel(Protocol):
    """What an exchange needs of its connection."""

    lost: bool

    def hold(self, more: int) -> None:
        """Count `more` bytes of a body; raises `RequestError` where the server holds too many."""
        ...

    def answered(self, exchange: Exchange, size: int) -> None:
        """Called once, when the answer of `size` bytes is ready."""
        ...

    def failed(self, status: int) -> None:
        """Called before that where the answer is an error."""
        ...


class Exchange:
    """One request and, later, its one answer. Answers leave in request order, whatever order they are given in."""

    __slots__ = ("_answer", "_channel", "body", "done", "headers", "keep_alive", "method", "target")

    def __init__(self, channel: Channel, head: Head, body: Buffer = b"") -> None:
        self._channel = channel
        self._answer: list[Buffer] | None = None
        self.method = head.method
        self.target = head.target
        self.headers = head.headers
        self.body = body
        self.keep_alive = head.keep_alive
        self.done = False

    @property
    def gone(self) -> bool:
        """Whether the client has closed the connection."""
        return self._channel.lost

    def header(self, name: str) -> str | None:
        """Return the value of a header, by its name in small letters; None where it was not sent."""
        value = self.headers.get(name.encode())
        return None if value is None else value.decode("utf-8", "surrogateescape")

    def replace_body(self, body: Buffer) -> None:
        """Put the decoded body in the place of the coded one.

        Raises:
            RequestError: 503, the server holds too many.
        """
        self._channel.hold(len(body) - len(self.body))
        self.body = body

    def reply(self, status: int, body: Sequence[Buffer], content_type: bytes = JSON, extra: bytes = b"") -> None:
        """Answer; a second answer is ignored. `extra` is whole header lines, each with its CRLF."""
        if not self.done:
            self.done = True
            self._write(status, body, content_type, extra)

    def _write(self, status: int, body: Sequence[Buffer], content_type: bytes, extra: bytes) -> None:
        size = sum(map(len, body))
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        head = b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b%b" % (
            _STATUS_LINES[status],
            content_type,
            size,
            extra,
            end,
        )
        self._answer = [head] if self.method == b"HEAD" else [head, *body]
        self._channel.answered(self, size + len(head))

    def fail(self, status: int, message: str, extra: bytes = b"") -> None:
        """Answer with `{"error": message}`; the message is made one line of at most 600 characters."""
        self._channel.failed(status)
        self.reply(status, [orjson.dumps({"error": one_line(message)})], JSON, extra)

    def answer(self, request: Request, outputs: Sequence[Tensor]) -> None:
        """Answer an infer request.

        Raises:
            RequestError: JSON was asked for and cannot carry a value.
        """
        lane = request.lane
        body, json_size = write_answer(
            lane.answers, request.fitted, outputs, lane.endpoint, lane.version, request.request_id
        )
        kind, extra = JSON, lane.headers
        if json_size is not None:
            kind, extra = OCTETS, b"%binference-header-content-length: %d\r\n" % (extra, json_size)
        if sum(map(len, body)) >= codings.MIN_ANSWER_BYTES:
            coding = codings.accepted(self.headers.get(b"accept-encoding", b""))
            if coding is not None:
                self._reply_coded(body, kind, extra, coding)
                return
        self.reply(200, body, kind, extra)

    def _reply_coded(self, body: Sequence[Buffer], kind: bytes, extra: bytes, coding: bytes) -> None:
        if self.done:
            return
        self.done = True
        extra = b"%bcontent-encoding: %b\r\nvary: accept-encoding\r\n" % (extra, coding)
        if sum(map(len, body)) <= codings.INLINE_ANSWER_BYTES:
            self._write(200, [codings.encode(body, coding)], kind, extra)
            return
        # The answer is given, and its turn is kept; only the bytes come later.
        work = asyncio.get_running_loop().run_in_executor(codings.WORKERS, codings.encode, body, coding)
        work.add_done_callback(lambda done: self._write(200, [done.result()], kind, extra))

    def refuse(self, error: RequestError, lane: Lane | None = None) -> None:
        """Answer with an error, and with the headers of the lane that was chosen."""
        extra = lane.headers if lane else b""
        if error.retry_after_s:
            extra += b"retry-after: %d\r\n" % error.retry_after_s
        self.fail(error.status, error.message, extra)

    @property
    def answer_bytes(self) -> int:
        """Size of the rendered answer, head included; -1 while there is none."""
        return -1 if self._answer is None else sum(map(len, self._answer))

    def take_answer(self) -> list[Buffer] | None:
        """Return the rendered answer, or None while there is none."""
        return self._answer
