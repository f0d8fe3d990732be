"""HTTP/1.1 on httptools: keep-alive, pipelining, chunked bodies, limits and deadlines. No tasks: one chain of callbacks."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

import httptools

from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.exchange import Exchange
from orchestrator.serving.protocol.heads import NO_HEAD, Head, head_fault
from orchestrator.serving.protocol.large_body import LARGE_BYTES, LargeBody
from orchestrator.serving.protocol.tensors import Buffer

if TYPE_CHECKING:
    from orchestrator.serving.protocol.http import HttpServer

_log: Final = logging.getLogger(__name__)
_SINGLE: Final = frozenset(
    (b"host", b"content-type", b"content-encoding", b"inference-header-content-length", b"authorization", b"expect")
)
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_RETRY: Final = b"retry-after: 1\r\n"
_NEVER: Final = float("inf")
_LINGER_S: Final = 2.0
_JOIN_BYTES: Final = 1 << 16


class Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Exchange] = deque()
        self._out, self._out_bytes = list[Buffer](), 0
        self._refusal: tuple[int, str] | None = None
        self._paused = self._write_blocked = self._closing = self._last = self._ending = False
        self._in_head = self._receiving = False
        self._head, self._fresh, self._missing = NO_HEAD, b"", 0
        self._reset()
        self.lost = False
        self.deadline = self._loop.time() + self._limits.idle_s

    def _reset(self) -> None:
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._lines = self._head_bytes = self._raw_bytes = self._body_bytes = 0
        self._body: Buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)
        if len(self._server.connections) > self._limits.connections:
            self._refuse(503, "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the name is asyncio's
        """Called by the event loop."""
        self.lost = True
        self._server.connections.discard(self)
        self._server.buffered_bytes -= self._body_bytes
        self._body, self._body_bytes = b"", 0
        self._out.clear()
        for exchange in self._waiting:
            if exchange.take_answer() is not None:
                self._server.buffered_bytes -= len(exchange.body)
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._closing:
            return
        if self._receiving and not self._missing:
            self._parse(data)
        else:
            self._receive(data)
        self._settle()

    def _settle(self) -> None:
        if self._refusal is not None and not self._closing:
            self._refuse(*self._refusal)
        elif len(self._waiting) >= self._limits.pipeline:
            self._pause(paused=True)

    def _receive(self, data: bytes) -> None:
        """Take what needs no parser: known heads, and bodies of a known size."""
        place, size = 0, len(data)
        while place < size and self._refusal is None:
            if not self._missing:
                head, end = self._server.heads.find(data, place)
                if head is None or self._last:
                    self._fresh = data[place:]
                    self._parse(self._fresh)
                    return
                self._head, self._missing, place = head, head.body_bytes, end
                if end + head.body_bytes > size:
                    self._receiving = True
                    self.deadline = self._loop.time() + self._limits.body_s
            if self._missing:
                end = min(size, place + self._missing)
                if self._missing - (end - place) > LARGE_BYTES and not self._body:
                    self._transport.set_protocol(LargeBody(self, data[place:end], self._missing))
                    self._hold_body(end - place)
                    return
                self.on_body(data[place:end])
                self._missing -= end - place
                place = end
            if not self._missing:
                self.on_message_complete()

    def _parse(self, data: bytes) -> None:
        headers, body_bytes = self._headers, self._body_bytes
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._note(400, "protocol upgrades are not supported")
        except httptools.HttpParserError as error:
            self._note(400, f"bad HTTP request: {error}")
        if not self._receiving or self._headers is not headers or self._body_bytes != body_bytes:
            self._raw_bytes = 0
        else:
            # Still the same request, and no byte of its body: a head or a trailer, which the parser keeps until it ends.
            self._raw_bytes += len(data)
            if self._raw_bytes > self._limits.head:
                self._note(431, f"request headers are over {self._limits.head} bytes")

    def pause_writing(self) -> None:
        """The client does not read: stop reading from it."""
        self._write_blocked = True
        self._pause(paused=True)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._write_blocked = False
        self._pause(paused=len(self._waiting) >= self._limits.pipeline)

    def _pause(self, *, paused: bool) -> None:
        if paused != self._paused and not self._transport.is_closing():
            self._paused = paused
            (self._transport.pause_reading if paused else self._transport.resume_reading)()

    # httptools callbacks: they must not raise, so what is wrong is noted and dealt with after feed_data.

    def _note(self, status: int, message: str) -> None:
        if self._refusal is None:
            self._refusal = (status, message)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._reset()
        self._in_head = self._receiving = True
        self.deadline = self._loop.time() + self._limits.head_s

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        self._target += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer behind a chunked body: those count, and change nothing."""
        self._lines += 1
        self._head_bytes += len(name) + len(value) + 4
        if not self._in_head:
            if self._head_bytes > self._limits.head:
                self._note(431, f"request headers are over {self._limits.head} bytes")
            return
        name = name.lower()
        if name in self._headers and name in _SINGLE:
            self._note(400, f"header {name.decode('latin-1')} appears twice")
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        """The head is whole; a body may follow."""
        self._in_head = False
        self.deadline = self._loop.time() + self._limits.body_s
        parser, keep_alive = self._parser, self._parser.should_keep_alive()
        self._last = not keep_alive
        self._head = Head(parser.get_method(), self._target, self._headers, keep_alive=keep_alive)
        fault = head_fault(self._headers, parser.get_http_version(), self._head_bytes, self._limits)
        if fault is not None:
            self._note(*fault)
        elif self._fresh and self._refusal is None:
            self._server.heads.learn(self._fresh, self._lines, self._head)
        self._fresh = b""
        if b"expect" in self._headers and not self._waiting and self._refusal is None:
            self._put([_CONTINUE], len(_CONTINUE))

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        if self._refusal is not None or not self._hold_body(len(data)):
            return
        if not self._body:
            self._body = data
        else:
            if not isinstance(self._body, bytearray):
                self._body = bytearray(self._body)
            self._body += data

    def _hold_body(self, more: int) -> bool:
        self._body_bytes += more
        self._server.buffered_bytes += more
        if self._body_bytes > self._limits.body:
            self._note(413, f"body is over {self._limits.body} bytes")
        elif self._server.buffered_bytes > self._limits.buffered:
            self._note(503, "the server holds too many request bodies")
        return self._refusal is None

    def grown(self, more: int, whole: memoryview | None) -> None:
        """A large body has grown by `more` bytes, and is whole where it is given."""
        if not self._closing and self._hold_body(more):
            if whole is None:
                return
            self._missing, self._body = 0, whole
            self._transport.set_protocol(self)
            self.on_message_complete()
        else:
            self._transport.set_protocol(self)
        self._settle()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._receiving = False
        if self._refusal is not None:
            return
        exchange = Exchange(self, self._head, self._body)
        exchange.keep_alive &= not self._server.stopping
        self._body, self._body_bytes = b"", 0
        self.deadline = _NEVER
        self._waiting.append(exchange)
        try:
            self._server.handler(exchange)
        except Exception:  # noqa: BLE001 - a fault of ours, and no reason to end the router for all others
            _log.exception("request handler failed")
            exchange.keep_alive = False
            exchange.fail(500, "internal error")

    def answered(self, exchange: Exchange, size: int) -> None:
        """Queue every answer whose turn it is to be written."""
        if self.lost:
            self._server.buffered_bytes -= len(exchange.body)
            return
        waiting = self._waiting
        while waiting and (answer := waiting[0].take_answer()) is not None:
            first = waiting.popleft()
            self._server.buffered_bytes -= len(first.body)
            if not self._ending:
                self._ending = not first.keep_alive
                self._put(answer, size)
        if not waiting and not self._receiving and not self._ending:
            self.deadline = self._loop.time() + self._limits.idle_s
        if self._paused and not self._write_blocked and len(waiting) < self._limits.pipeline // 2:
            self._pause(paused=False)

    def _put(self, pieces: Sequence[Buffer], size: int) -> None:
        if not self._out:
            self._server.write_soon(self)
        self._out += pieces
        self._out_bytes += size

    def write(self) -> None:
        """Write what is queued; called once in each turn of the event loop that has queued something."""
        out, size = self._out, self._out_bytes
        self._out, self._out_bytes = [], 0
        if self._transport.is_closing():
            return
        if len(out) == 1 or size > _JOIN_BYTES:
            self._transport.writelines(out)
        else:
            self._transport.write(b"".join(out))
        if self._ending:
            self._end()

    def failed(self, status: int) -> None:
        """Count an answer that is an error."""
        self._server.errors[status] += 1

    def hold(self, more: int) -> None:
        """Count bytes that a body has grown by; it shrinks again with the answer."""
        if more > 0 and self._server.buffered_bytes + more > self._limits.buffered:
            raise RequestError("the server holds too many request bodies", status=503, kind="overload", retry_after_s=1)
        self._server.buffered_bytes += more

    def _end(self) -> None:
        """Close after what has been written; what the client still sends is dropped, so that it can read our answer."""
        self._closing = True
        self._pause(paused=False)
        self.deadline = self._loop.time() + _LINGER_S
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _refuse(self, status: int, message: str) -> None:
        """Answer a request that is not whole, after the answers that are still owed, and close."""
        self._server.buffered_bytes -= self._body_bytes
        self._body, self._body_bytes, self._refusal, self._closing = b"", 0, None, True
        exchange = Exchange(self, NO_HEAD)
        self._waiting.append(exchange)
        exchange.fail(status, message, _RETRY if status == 503 else b"")

    def expire(self) -> None:
        """The deadline has passed."""
        if self._receiving and not self._closing:
            self.deadline = _NEVER
            self._refuse(408, "the request did not arrive in time")
        else:
            self._transport.abort()

    def close_if_idle(self) -> None:
        """Close now when nothing is owed; else after the last answer."""
        if self._waiting:
            self._waiting[-1].keep_alive = False
        elif self._out:
            self._ending = True
        elif not self._transport.is_closing():
            self._transport.close()
