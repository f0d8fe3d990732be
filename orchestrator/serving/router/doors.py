"""The public ports of a router: HTTP and gRPC, guarded by tokens and TLS where these are set."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.core.errors import ServingError
from orchestrator.core.files import write_atomic
from orchestrator.serving.config import RouterSettings
from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol.http import HttpServer
from orchestrator.serving.protocol.limits import Limits
from orchestrator.serving.protocol.listening import Contexts, Listener
from orchestrator.serving.router.admission import Admission
from orchestrator.serving.router.auth import Guard
from orchestrator.serving.router.front import Front
from orchestrator.serving.router.routes import Routes
from orchestrator.serving.router.tls import HANDSHAKE_S, Tls

if TYPE_CHECKING:
    from orchestrator.serving.router.grpc_front import GrpcFront

_log: Final = logging.getLogger("orchestrator.serving.router")
_ANY: Final = ("0.0.0.0", "::")  # noqa: S104 (compared with, not bound)


class Doors:
    """Both ports.

    Args:
        settings: The router's.
        front: Answers HTTP, once the guard has let it through.
        limits: Of HTTP and gRPC.

    Raises:
        UsageError: Tokens or certificate cannot be used.
    """

    def __init__(
        self, settings: RouterSettings, front: Front, routes: Routes, admission: Admission, limits: Limits
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._routes, self._admission = routes, admission
        self.guard = Guard(Path(settings.tokens_file)) if settings.tokens_file else None
        self._tls = Tls(settings.tls_cert, settings.tls_key, settings.tls_client_ca) if settings.tls_cert else None
        self.http = HttpServer(self.guard.gate(front.handle) if self.guard else front.handle, limits)
        self.grpc: GrpcFront | None = None
        self.port = 0
        self.url = self.grpc_url = ""
        self._state = Path(settings.state)
        self._listener: Listener | None = None
        host = socket.gethostname() if settings.host in _ANY else settings.host
        self._host = f"[{host}]" if ":" in host else host

    async def open(self) -> None:
        """Listen.

        Raises:
            ServingError: A port is taken, or gRPC is asked for and not installed.
        """
        memory = self._state / "port"
        listener = _listen(self._settings, memory)
        self.port = listener.getsockname()[1]
        tls = self._tls
        self._listener = Listener(listener, self.http.protocol, self.tls_contexts, HANDSHAKE_S)
        self.url = f"{'https' if tls else 'http'}://{self._host}:{self.port}"
        write_atomic(memory, str(self.port).encode())
        await self._open_grpc()

    async def _open_grpc(self) -> None:
        wanted, memory = self._settings.grpc_port, self._state / "grpc_port"
        if wanted < 0:
            return
        try:
            import grpc

            from orchestrator.serving.router.grpc_front import GrpcFront
            from orchestrator.serving.router.grpc_guard import GrpcGuard
        except ModuleNotFoundError as error:
            hint = "install grpcio and protobuf, or set grpc_port to -1"
            if wanted > 0:
                raise ServingError(f"gRPC needs {error.name}, which is not installed", hint=hint) from error
            _log.warning("gRPC is off: %s is not installed; %s", error.name, hint)
            return
        self.grpc = GrpcFront(self._routes, self._admission, self._limits, self._settings.compat)
        start = partial(
            self.grpc.start,
            guards=[GrpcGuard(self.guard)] if self.guard else (),
            credentials=self._tls.grpc_credentials(grpc) if self._tls else None,
            shared=self._settings.shared,
        )
        remembered = int(memory.read_text() or "0") if wanted == 0 and memory.exists() else 0
        try:
            port = await start(self._settings.host, remembered or wanted)
        except ServingError:
            if not remembered:
                raise
            port = await start(self._settings.host, 0)
        write_atomic(memory, str(port).encode())
        self.grpc_url = f"{self._host}:{port}"

    def name_token(self, authorization: bytes) -> str:
        """Return the name of the token in an `Authorization` header, or nothing."""
        try:
            return self.guard.find(authorization).name if self.guard else ""
        except RequestError:
            return ""

    @property
    def tls_contexts(self) -> Contexts | None:
        """What all listeners of this router use for TLS."""
        tls = self._tls
        return (lambda: tls.context) if tls else None

    def refresh(self, *, force: bool = False) -> None:
        """Read tokens and certificates again where their files have changed; call this about once a second."""
        if self.guard is not None:
            self.guard.refresh(force=force)
        if self._tls is not None:
            self._tls.refresh(force=force)

    def close(self, grace_s: float) -> asyncio.Task[None] | None:
        """Take nothing new; returns what ends when gRPC has answered what is here."""
        if self._listener is not None:
            self._listener.close()
        self.http.stop()
        return asyncio.create_task(self.grpc.stop(grace_s)) if self.grpc else None


def _listen(settings: RouterSettings, memory: Path) -> socket.socket:
    """Bind the public port; port 0 first tries the one of the last start, so that a restart keeps its address."""
    ports = [settings.port]
    if settings.port == 0 and memory.exists():
        ports.insert(0, int(memory.read_text() or "0"))
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    for port in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind((settings.host, port))
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and port != ports[-1]:
                continue
            raise ServingError(
                f"cannot listen on {settings.host}:{port}: {error}", hint="choose another port"
            ) from error
        listener.setblocking(False)
        return listener
    raise AssertionError("unreachable: the last port returns or raises")
