"""Two hooks that Ray calls in its own processes; everything else about the head is flags and environment."""

from __future__ import annotations

import os
from typing import Any, cast


def configure_head(params: Any, head: bool) -> None:
    """Called by `ray start` (RAY_START_HOOK): no Ray Client server, which nothing here uses and which has no flag to stop it."""
    if head:
        params.ray_client_server_port = None


def close_serve_port() -> None:
    """Called in every worker: Serve's replicas must not listen on all interfaces.

    Serve 2.60 opens a port for calls between deployments in each replica: on `[::]`, without token, unpickling what
    arrives, even in a cluster with token authentication. Our agents are never called that way, so the server gets a Unix
    socket in the site's private folder. Only that one address is changed; TLS and other servers stay as Ray wants them.
    """
    from ray._common import tls_utils

    folder = os.environ.get("ORCHESTRATE_RUNTIME", "")
    open_port = cast("Any", tls_utils).add_port_to_grpc_server

    def open_privately(server: Any, address: str) -> int:
        private = f"unix:{folder}/serve-{os.getpid()}.sock" if folder and address == "[::]:0" else address
        return int(open_port(server, private))

    tls_utils.add_port_to_grpc_server = open_privately  # pyright: ignore[reportAttributeAccessIssue]
