"""What grpc.aio itself costs: the request's bytes are the answer, nothing is parsed. `PORT`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc.aio
import uvloop


async def echo(request: bytes, _context: Any) -> bytes:
    """Give it back."""
    return request


class Everything(grpc.GenericRpcHandler):
    """Every method is the echo."""

    def service(self, handler_call_details: Any) -> Any:  # noqa: ARG002
        """See grpc."""
        return grpc.unary_unary_rpc_method_handler(echo)


async def main() -> None:
    """Serve for ever."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Everything(),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main()) if len(sys.argv) > 2 else asyncio.run(main())
