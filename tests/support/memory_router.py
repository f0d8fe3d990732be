"""A whole router without sockets or processes: its connections are fed by hand, an echo answers at the other end of the link.

The same bytes always give the same answers, which is what a fuzzer needs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.serving.config import RouterSettings
from orchestrator.serving.link.frames import FrameReader, Kind, decode_tensors, encode
from orchestrator.serving.link.wire import ReplicaHello, read_rows
from orchestrator.serving.protocol.signature import Signature
from orchestrator.serving.protocol.tensors import TensorSpec
from orchestrator.serving.router.process import Router
from orchestrator.serving.runtimes.api import REHEARSAL
from orchestrator.serving.table import RoutingTable
from support.link_replica import Answer, bundle_of, echo, row

_T = TypeVar("_T")
_PATIENCE_S = 5.0


class MemoryTransport:
    """What a protocol needs of a transport; keeps what it writes."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closing = self.ended = self.paused = False

    def write(self, data: bytes) -> None:
        assert not self.ended, "written after the end"
        self.written += data

    def writelines(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            self.write(piece)

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.closing = True

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def read_responses(data: bytes, heads: Sequence[int] = ()) -> list[Response]:
    """Cut what a client has received into answers; `heads` are the places of those to HEAD requests, which have no body.

    Raises:
        AssertionError: It is no whole row of HTTP answers.
    """
    found: list[Response] = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"an answer without an end: {head[:200]!r}"
        lines = head.decode("ascii").split("\r\n")
        version, status, reason = lines[0].split(" ", 2)
        assert version == "HTTP/1.1", lines[0]
        assert reason, lines[0]
        if status == "100":
            continue
        headers = dict(line.split(": ", 1) for line in lines[1:])
        assert len(headers) == len(lines) - 1, lines
        size = 0 if len(found) in heads else int(headers["content-length"])
        assert len(data) >= size, (len(data), size)
        found.append(Response(int(status), headers, data[:size]))
        data = data[size:]
    return found


class MemoryRouter:
    """A router, the echo models in `models`, and a loop that runs only while something is asked of it."""

    def __init__(self, state: Path, models: dict[str, tuple[TensorSpec, ...]], answer: Answer = echo) -> None:
        self.loop = asyncio.new_event_loop()
        settings = RouterSettings("127.0.0.1", 0, str(state / "a"), str(state / "l"), str(state), grpc_port=-1)
        self.router = self.run(self._make(settings))
        endpoints = {name: {"pool": "edge", "generations": [row(name)]} for name in models}
        self.run(self._do(self.router.apply, RoutingTable.from_json({"version": 1, "endpoints": endpoints})))
        self.answer = answer
        self.byes: list[str] = []
        self.links = {name: self.dial(name, inputs) for name, inputs in models.items()}

    @staticmethod
    async def _make(settings: RouterSettings) -> Router:
        return Router(settings)

    @staticmethod
    async def _do(call: Any, *args: Any) -> Any:
        return call(*args)

    def run(self, work: Any) -> Any:
        """Run a coroutine to its end."""
        return self.loop.run_until_complete(work)

    def dial(self, endpoint: str, inputs: tuple[TensorSpec, ...]) -> tuple[Any, LinkTransport]:
        """Register an echo of `endpoint`; returns the router's end of its link, and the transport."""
        return self.run(self._do(self.connect, endpoint, inputs))

    def connect(self, endpoint: str, inputs: tuple[TensorSpec, ...]) -> tuple[Any, LinkTransport]:
        """The same, on the loop."""
        protocol = self.router.links.protocol()
        transport = LinkTransport(self, protocol, lambda: self.connect(endpoint, inputs))
        protocol.connection_made(transport)  # pyright: ignore[reportArgumentType]
        outputs = tuple(TensorSpec(f"{spec.name}_out", spec.datatype, spec.dims) for spec in inputs)
        hello = ReplicaHello(
            f"memory-{endpoint}",
            1,
            endpoint,
            bundle_of(endpoint),
            "onnx-cpu",
            REHEARSAL,
            Signature(inputs, outputs, 32),
        )
        protocol.data_received(encode(Kind.HELLO, hello.to_json()) + encode(Kind.CREDIT, {"credit": 4}))
        return protocol, transport

    def talk(self, *pieces: bytes, heads: Sequence[int] = ()) -> tuple[list[Response], MemoryTransport]:
        """Open a connection, send the pieces one after the other, and return all that it answers."""
        transport = self.run(self._talk(pieces))
        return read_responses(bytes(transport.written), heads), transport

    async def _talk(self, pieces: Sequence[bytes]) -> MemoryTransport:
        protocol, transport = self.router.public.protocol(), MemoryTransport()
        protocol.connection_made(transport)  # pyright: ignore[reportArgumentType]
        for piece in pieces:
            protocol.data_received(piece)
            await asyncio.sleep(0)
        await self._settle()
        protocol.connection_lost(None)
        await asyncio.sleep(0)
        return transport

    async def _settle(self) -> None:
        """Wait until nothing is queued or on its way: decoders have threads of their own."""
        deadline = self.loop.time() + _PATIENCE_S
        while True:
            for _ in range(3):
                await asyncio.sleep(0)
            owed = any(connection.owes for connection in map(_Owing, self.router.public.connections))
            if not owed or self.loop.time() > deadline:
                break
            await asyncio.sleep(0.0005)
        for _ in range(3):  # an answer is written in the turn after the one that gave it
            await asyncio.sleep(0)

    def close(self) -> None:
        self.loop.close()


class _Owing:
    """Whether a connection waits for an answer."""

    def __init__(self, connection: Any) -> None:
        self.owes = bool(connection._waiting)


class LinkTransport(MemoryTransport):
    """The replica's side of a link: takes batches and answers them on the loop's next turn; dials again when it is ended."""

    def __init__(self, router: MemoryRouter, protocol: Any, again: Callable[[], object]) -> None:
        super().__init__()
        self._router, self._protocol, self._reader, self._again = router, protocol, FrameReader(), again

    def write(self, data: bytes) -> None:
        for frame in self._reader.feed(data):
            if frame.kind is Kind.BATCH:
                replies = self._router.answer(frame, decode_tensors(frame, "inputs"), read_rows(frame))
                for piece in replies:
                    self._router.loop.call_soon(self.feed, piece)
            elif frame.kind is Kind.BYE:
                self._router.byes.append(str(frame.head.get("reason")))

    def feed(self, data: bytes) -> None:
        """Let the router receive these bytes, unless the connection has ended; none at all end it."""
        if not data:
            self.close()
        elif not self.closing:
            self._protocol.data_received(data)

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._router.loop.call_soon(self._protocol.connection_lost, None)
            self._router.loop.call_soon(self._again)

    abort = close
