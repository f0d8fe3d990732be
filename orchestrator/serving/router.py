"""The router process: `python -m orchestrator.serving.router --config router.json`. One event loop owns the data path."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
import uvloop

from orchestrator.core.errors import ServingError
from orchestrator.core.files import private_folder, write_atomic, write_json
from orchestrator.core.processes import ProcessIdentity
from orchestrator.serving.admission import Admission
from orchestrator.serving.backdoor import Backdoor
from orchestrator.serving.config import RouterSettings
from orchestrator.serving.dispatch import Dispatcher
from orchestrator.serving.front import Front
from orchestrator.serving.gauges import Pulse
from orchestrator.serving.http import HttpServer
from orchestrator.serving.limits import Limits
from orchestrator.serving.links import LinkServer
from orchestrator.serving.record import Recorder
from orchestrator.serving.routes import Routes
from orchestrator.serving.start import start
from orchestrator.serving.table import EMPTY, RoutingTable

if TYPE_CHECKING:
    from orchestrator.serving.grpc_front import GrpcFront

_log: Final = logging.getLogger("orchestrator.serving.router")
_SWEEP_S: Final = 0.05
_CLOSE_SWEEPS: Final = 20
_STOP_S: Final = 5.0
_ADMIN_LIMITS: Final = Limits(body=4 << 20, connections=100)


class Router:
    """All parts of one router, wired."""

    def __init__(self, settings: RouterSettings) -> None:
        self.settings = settings
        self.recorder = Recorder()
        self.pulse = Pulse(_SWEEP_S)
        self._loop = asyncio.get_running_loop()
        self.dispatcher = Dispatcher(
            later=self._loop.call_later,
            self.recorder,
            queue_limit=settings.queue_limit,
            replica_grace_s=settings.replica_grace_s,
            soon=self._loop.call_soon,
        )
        self.routes = Routes(self.dispatcher)
        self.links = LinkServer(self.dispatcher)
        self.admission = Admission(self.dispatcher, self.recorder, settings.request_timeout_s)
        limits = Limits()
        self.front = Front(self.routes, self.admission, limits, settings.compat)
        self.public = HttpServer(self.front.handle, limits)
        self.admin = HttpServer(Backdoor(self).handle, _ADMIN_LIMITS)
        self.url = self.grpc_url = ""
        self.grpc: GrpcFront | None = None
        self._limits = limits
        self._state = Path(settings.state)
        self._sweeps = 0

    def offer_table(self, table: RoutingTable) -> None:
        """Persist and apply a table.

        Raises:
            Conflict: It is fenced.
        """
        accepted = self.routes.table.replace(table)
        if accepted != self.routes.table:
            write_json(self._state / "table.json", accepted.to_json(), mode=0o600)
            self.apply(accepted)

    def apply(self, table: RoutingTable) -> None:
        """Route by `table` from the next request on."""
        self.routes.set_table(table, time.monotonic())
        self.front.table_changed()
        self.links.set_table(table)
        _log.info("table version %d: %d endpoints", table.version, len(table.endpoints))

    def load_table(self) -> RoutingTable:
        """Return the table of the last router in this state folder.

        Raises:
            ServingError: The file is damaged. Serving an older or empty table silently would be worse than not starting.
        """
        path = self._state / "table.json"
        if not path.exists():
            return EMPTY
        try:
            return RoutingTable.from_json(orjson.loads(path.read_bytes()))
        except orjson.JSONDecodeError as error:
            raise ServingError(
                f"the stored table is damaged: {error}", place=str(path), hint="remove it and put the table again"
            ) from error

    async def serve(self) -> None:
        """Listen until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop.set)
        self.apply(self.load_table())
        listener = _listen(self.settings, self._state / "port")
        self.url = f"http://{self.settings.host}:{listener.getsockname()[1]}"
        # The servers must stay referenced: uvloop closes one that is garbage-collected.
        servers = [
            await self._unix_server(self.links.protocol, self.settings.link),
            await self._unix_server(self.admin.protocol, self.settings.admin),
            await self._loop.create_server(self.public.protocol, sock=listener, backlog=4096),
        ]
        await self._start_grpc()
        self._write_state(listener.getsockname()[1])
        self._sweep()
        _log.info("router listens on %s, gRPC on %s", self.url, self.grpc_url or "no port")
        # What lives now lives for ever; the collector need not walk it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 50, 50)
        await stop.wait()
        await self._stop(servers)

    async def _start_grpc(self) -> None:
        wanted, memory = self.settings.grpc_port, self._state / "grpc_port"
        if wanted < 0:
            return
        try:
            from orchestrator.serving.grpc_front import GrpcFront
        except ModuleNotFoundError as error:
            hint = "install grpcio and protobuf, or set grpc_port to -1"
            if wanted > 0:
                raise ServingError(f"gRPC needs {error.name}, which is not installed", hint=hint) from error
            _log.warning("gRPC is off: %s is not installed; %s", error.name, hint)
            return
        self.grpc = GrpcFront(self.routes, self.admission, self._limits, self.settings.compat)
        remembered = int(memory.read_text() or "0") if wanted == 0 and memory.exists() else 0
        try:
            port = await self.grpc.start(self.settings.host, remembered or wanted)
        except ServingError:
            if not remembered:
                raise
            port = await self.grpc.start(self.settings.host, 0)
        write_atomic(memory, str(port).encode())
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        self.grpc_url = f"{host}:{port}"

    async def _unix_server(self, protocol: Any, path: str) -> asyncio.Server:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        previous = os.umask(0o177)
        try:
            return await self._loop.create_unix_server(protocol, path)
        finally:
            os.umask(previous)

    def _write_state(self, port: int) -> None:
        own = ProcessIdentity.own()
        write_atomic(self._state / "port", str(port).encode())
        facts = {
            "pid": own.pid,
            "started_ticks": own.started_ticks,
            "host": self.settings.host,
            "port": port,
            "url": self.url,
            "grpc": self.grpc_url,
            "admin": self.settings.admin,
            "link": self.settings.link,
        }
        write_json(self._state / "router.json", facts)

    def _sweep(self) -> None:
        # Not the loop's time: uvloop's has a resolution of 1 ms, and requests take less.
        now = time.monotonic()
        self.pulse.beat(now)
        self.dispatcher.sweep(now)
        self.recorder.tick(now)
        self._sweeps += 1
        if self._sweeps % _CLOSE_SWEEPS == 0:
            self.public.sweep(self._loop.time())
            self.admin.sweep(self._loop.time())
        self._loop.call_later(_SWEEP_S, self._sweep)

    async def _stop(self, servers: list[asyncio.Server]) -> None:
        """Take no new connection, answer what is here, within `_STOP_S`."""
        servers[-1].close()
        self.public.stop()
        deadline = self._loop.time() + _STOP_S
        ending = asyncio.create_task(self.grpc.stop(_STOP_S)) if self.grpc else None
        while self._loop.time() < deadline and any(lane.busy for lane in self.dispatcher.lanes):
            await asyncio.sleep(0.02)
        if ending is not None:
            await ending
        (self._state / "router.json").unlink(missing_ok=True)
        for server in servers[:-1]:
            server.close()
        _log.info("router ends")


def _listen(settings: RouterSettings, memory: Path) -> socket.socket:
    """Bind the public port; port 0 first tries the one of the last start, so that a restart keeps its address."""
    ports = [settings.port]
    if settings.port == 0 and memory.exists():
        ports.insert(0, int(memory.read_text() or "0"))
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    for port in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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


async def _main(settings: RouterSettings) -> None:
    await Router(settings).serve()


def main(argv: list[str] | None = None) -> int:
    """Run the router; returns the exit code."""

    def serve(settings: RouterSettings) -> None:
        private_folder(Path(settings.state))
        uvloop.run(_main(settings))

    return start("orchestrator.serving.router", RouterSettings, serve, argv)


if __name__ == "__main__":
    sys.exit(main())
