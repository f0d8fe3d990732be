"""The standard gRPC health service: the server, and the inference service by its name, are one and the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from orchestrator.serving.protocol.proto import load_messages

_MESSAGES: Final = load_messages(Path(__file__).with_name("health.proto"))
_WATCH_S: Final = 0.25


def health_handler(service: str, ready: Callable[[], bool]) -> Any:
    """Return the handler to add to a server.

    Args:
        service: Full name of the service that `ready` speaks for.
        ready: Whether it is ready now.
    """

    def status(name: str) -> str | None:
        if name in ("", service):
            return "SERVING" if ready() else "NOT_SERVING"
        return None

    async def check(data: bytes, context: Any) -> bytes:
        found = status(await _service(data, context))
        if found is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return _answer(found)

    async def watch(data: bytes, context: Any) -> AsyncIterator[bytes]:
        name, told = await _service(data, context), ""
        while True:
            found = status(name) or "SERVICE_UNKNOWN"
            if found != told:
                told = found
                yield _answer(found)
            await asyncio.sleep(_WATCH_S)

    handlers: dict[str, Any] = {
        "Check": grpc.unary_unary_rpc_method_handler(check),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
    }
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)


async def _service(data: bytes, context: Any) -> str:
    try:
        return _MESSAGES["HealthCheckRequest"].FromString(data).service
    except DecodeError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the message is no HealthCheckRequest: {error}")
        raise AssertionError("unreachable: abort raises") from error


def _answer(status: str | None) -> bytes:
    return _MESSAGES["HealthCheckResponse"](status=status).SerializeToString()
