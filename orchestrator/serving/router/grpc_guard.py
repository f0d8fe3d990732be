"""The guard of gRPC: the same tokens and buckets as for HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

import grpc
import grpc.aio

from orchestrator.serving.errors import RequestError
from orchestrator.serving.router.auth import Guard, Token

_OPEN: Final = frozenset(
    (
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    )
)
_STREAM: Final = "/inference.GRPCInferenceService/ModelStreamInfer"


class GrpcGuard(grpc.aio.ServerInterceptor):
    """Lets through calls with a token; a stream is read no faster than its token's rate."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Called by grpc for every call."""
        method = handler_call_details.method
        if method in _OPEN:
            return await continuation(handler_call_details)
        given = [value for key, value in handler_call_details.invocation_metadata or () if key == "authorization"]
        authorization = given[0].encode("latin-1", "replace") if len(given) == 1 else None
        try:
            if method == _STREAM:
                self._guard.find(authorization)
                return _slowed(await continuation(handler_call_details), partial(self._guard.find, authorization))
            self._guard.admit(authorization, time.monotonic())
        except RequestError as error:
            return _refusal(error)
        return await continuation(handler_call_details)


def _slowed(handler: Any, find: Callable[[], Token]) -> Any:
    """Look for the token at every message: a stream may outlive it, or its rate."""

    async def requests(found: AsyncIterator[bytes], refused: list[RequestError]) -> AsyncIterator[bytes]:
        async for data in found:
            try:
                while wait_s := find().take(time.monotonic()):
                    await asyncio.sleep(wait_s)
            except RequestError as error:
                refused.append(error)
                return
            yield data

    async def stream(found: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        refused: list[RequestError] = []
        async for answer in handler.stream_stream(requests(found, refused), context):
            yield answer
        for error in refused:  # what was let in before has its answers by now
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.message)

    return cast("Any", grpc).stream_stream_rpc_method_handler(stream)


def _refusal(error: RequestError) -> Any:
    code = grpc.StatusCode.UNAUTHENTICATED if error.status == 401 else grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = (("retry-after", str(error.retry_after_s)),) if error.retry_after_s else ()

    async def refuse(_: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await context.abort(code, error.message, trailing)
        yield b""  # abort raises; this makes it a stream, which any call of a client may be answered with

    return cast("Any", grpc).stream_stream_rpc_method_handler(refuse)
