"""The gRPC door: GRPCInferenceService and the standard health service, on the router's event loop."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf import json_format

from orchestrator.core.errors import ServingError
from orchestrator.core.lines import one_line
from orchestrator.serving.dispatch.lanes import Lane, Request
from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.grpc_forms import RawForms, render
from orchestrator.serving.protocol.limits import Limits
from orchestrator.serving.protocol.oip_grpc import MESSAGES, decode
from orchestrator.serving.protocol.tensors import Tensor
from orchestrator.serving.router import describe
from orchestrator.serving.router.admission import Admission
from orchestrator.serving.router.company import Company
from orchestrator.serving.router.grpc_health import health_handler
from orchestrator.serving.router.routes import Routes

SERVICE: Final = "inference.GRPCInferenceService"
_CODES: Final = {
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_SLACK_BYTES: Final = 1 << 20
_STREAM_WINDOW: Final = 64
"""Unanswered requests of one stream before it is read no further."""
_RPCS: Final = 10_000
_STREAMS: Final = 1024
"""Open calls of one connection; a client that wants more waits by itself."""


def _worth_telling(record: logging.LogRecord) -> bool:
    """A client that has gone before its answer is an error with a traceback to grpc; here it is daily life."""
    return "ExecuteBatchError" not in record.getMessage()


class GrpcCaller:
    """Waits for the answer of one request.

    Attributes:
        metadata: What came with the call.
        size: Bytes of the message.
    """

    __slots__ = ("_future", "done", "gone", "metadata", "size")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[bytes | RequestError] = loop.create_future()
        self.done = False
        self.gone = False
        self.metadata: Sequence[tuple[str, str | bytes]] = ()
        self.size = -1

    def header(self, name: str) -> str | None:
        """Return the value of the call's metadata of this name, in small letters; None where it was not sent."""
        for key, value in self.metadata:
            if key == name:
                return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")
        return None

    @property
    def answer_bytes(self) -> int:
        """Size of the answer's message; -1 while there is none."""
        found = self._future.result() if self._future.done() and not self._future.cancelled() else None
        return len(found) if isinstance(found, bytes) else -1

    def answer(self, request: Request, outputs: Sequence[Tensor]) -> None:
        """Give the answer."""
        self._give(render(request, outputs))

    def refuse(self, error: RequestError, lane: Lane | None) -> None:  # noqa: ARG002 - headers are HTTP's
        """Give the error."""
        self._give(error)

    def _give(self, found: bytes | RequestError) -> None:
        if not self.done:
            self.done = True
            if not self._future.done():
                self._future.set_result(found)

    async def wait(self) -> bytes | RequestError:
        """Return the serialized `ModelInferResponse`, or the error; a caller that is cancelled is gone."""
        try:
            return await self._future
        except asyncio.CancelledError:
            self.gone = True
            raise


class GrpcFront:
    """Serves both services on one port.

    Args:
        limits: Message size, and bytes held, as for HTTP.
        compat: See `RouterSettings`.
    """

    def __init__(self, routes: Routes, admission: Admission, limits: Limits, compat: str) -> None:
        self._routes = routes
        self._admission = admission
        self._limits = limits
        self._compat = compat
        self._forms = RawForms(always_raw=compat == "triton")
        self._held_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._company = Company(self._loop)
        self._server: Any = None

    async def start(
        self, host: str, port: int, *, guards: Sequence[Any] = (), credentials: Any = None, shared: bool = False
    ) -> int:
        """Listen, and return the port. `guards` see every call first, `credentials` are of TLS, `shared` is with other routers.

        Raises:
            ServingError: The port is taken.
        """
        server = grpc.aio.server(
            interceptors=guards,
            maximum_concurrent_rpcs=_RPCS,
            options=(
                ("grpc.max_receive_message_length", self._limits.body + _SLACK_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", self._limits.head),
                # Two routers must not share a port by accident.
                ("grpc.so_reuseport", int(shared)),
                ("grpc.server_handshake_timeout_ms", int(self._limits.head_s * 1000)),
                ("grpc.max_concurrent_streams", _STREAMS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.http2.max_ping_strikes", 0),
            ),
        )
        server.add_generic_rpc_handlers((self._inference(), health_handler(SERVICE, self._routes.ready)))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials is None:
                found = server.add_insecure_port(address)
            else:
                found = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ServingError(
                f"cannot listen for gRPC on {host}:{port}: {error}", hint="choose another port"
            ) from error
        await server.start()
        self._server = server
        logging.getLogger("grpc._cython.cygrpc").addFilter(_worth_telling)
        return found

    async def stop(self, grace_s: float) -> None:
        """Take no new call, answer those that are here within `grace_s`."""
        if self._server is not None:
            await self._server.stop(grace_s)

    def _inference(self) -> Any:
        plain: dict[str, Callable[[Any], dict[str, Any]]] = {
            "ServerLive": lambda _: {"live": True},
            "ServerReady": lambda _: {"ready": self._routes.ready()},
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda _: describe.server(self._compat),
            "ModelMetadata": lambda asked: describe.metadata(self._routes.find(asked.name, asked.version)),
            "ModelConfig": lambda asked: {"config": describe.config(self._routes.find(asked.name, asked.version))},
            "ModelStatistics": self._statistics,
            "RepositoryIndex": lambda asked: {"models": describe.index(self._routes, ready=asked.ready)},
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(_plain(name, tell)) for name, tell in plain.items()
        }
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._infer)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _model_ready(self, asked: Any) -> dict[str, Any]:
        try:
            route, generation = self._routes.find(asked.name, asked.version)
        except RequestError:
            return {"ready": False}
        return {"ready": route.ready(generation)}

    def _statistics(self, asked: Any) -> dict[str, Any]:
        place = self._routes.find(asked.name, asked.version) if asked.name else None
        return describe.statistics(self._routes, place)

    # --- infer ---

    async def _infer(self, data: bytes, context: Any) -> bytes:
        arrived = time.monotonic()
        company = self._company.asked(arrived)
        if company is not None:
            await company
        caller = GrpcCaller(self._loop)
        size = self._submit(caller, data, context, arrived)
        try:
            found = await caller.wait()
        finally:
            self._held_bytes -= size
        if isinstance(found, RequestError):
            await _abort(context, found)
        return found

    def _submit(self, caller: GrpcCaller, data: bytes, context: Any, arrived: float) -> int:
        """Hand the request in, and return how many bytes it holds until its answer."""
        size = len(data)
        self._held_bytes += size
        remaining = context.time_remaining()
        patience_s = math.inf if remaining is None else remaining
        try:
            if self._held_bytes > self._limits.buffered:
                raise RequestError("the server holds too many requests", status=429, kind="overload", retry_after_s=1)
            message = self._forms.open(data)
            place = self._routes.find(*message.model)
        except RequestError as error:
            caller.refuse(error, None)
            return size
        caller.metadata, caller.size = context.invocation_metadata() or (), size
        try:
            asked = self._forms.parse(message)
        except RequestError as error:
            self._admission.refuse(caller, place, None, error, arrived, synthetic=False)
            return size
        self._admission.submit(caller, place, asked, arrived, patience_s, synthetic=False)
        return size

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer in the order of the requests; up to `_STREAM_WINDOW` of them run at once. An error ends no stream."""
        waiting: asyncio.Queue[tuple[GrpcCaller, int] | None] = asyncio.Queue()
        window = asyncio.Semaphore(_STREAM_WINDOW)

        async def read() -> None:
            try:
                async for data in requests:
                    await window.acquire()
                    caller = GrpcCaller(self._loop)
                    waiting.put_nowait((caller, self._submit(caller, data, context, time.monotonic())))
            finally:
                waiting.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (entry := await waiting.get()) is not None:
                try:
                    found = await entry[0].wait()
                finally:
                    self._held_bytes -= entry[1]
                window.release()
                yield _stream_answer(found)
        finally:
            reader.cancel()
            while not waiting.empty():
                if (left := waiting.get_nowait()) is not None:
                    left[0].gone = True
                    self._held_bytes -= left[1]


def _plain(name: str, tell: Callable[[Any], dict[str, Any]]) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """Make the handler of a call that asks and is told."""

    async def handle(data: bytes, context: Any) -> bytes:
        try:
            found = tell(decode(MESSAGES[f"{name}Request"], data))
        except RequestError as error:
            await _abort(context, error)
        return json_format.ParseDict(found, MESSAGES[f"{name}Response"]()).SerializeToString()

    return handle


async def _abort(context: Any, error: RequestError) -> NoReturn:
    code = _CODES.get(error.status, grpc.StatusCode.INVALID_ARGUMENT)
    trailing: tuple[tuple[str, str], ...] = ()
    if error.retry_after_s:  # the second is what gRPC's own retries obey
        again_s = error.retry_after_s
        trailing = (("retry-after", str(again_s)), ("grpc-retry-pushback-ms", str(again_s * 1000)))
    await context.abort(code, one_line(error.message), trailing)
    raise AssertionError("unreachable: abort raises")


def _stream_answer(found: bytes | RequestError) -> bytes:
    kind = MESSAGES["ModelStreamInferResponse"]
    if isinstance(found, RequestError):
        return kind(error_message=one_line(found.message)).SerializeToString()
    answer = kind()
    answer.infer_response.ParseFromString(found)
    return answer.SerializeToString()
