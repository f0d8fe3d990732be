"""The router process: `python -m orchestrator.serving.router.process --config router.json`. One event loop owns the data path."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import orjson
import uvloop

from orchestrator.core.errors import OrchestratorError, ServingError
from orchestrator.core.files import private_folder, write_json
from orchestrator.core.processes import ProcessIdentity
from orchestrator.serving.config import RouterSettings
from orchestrator.serving.dispatch.dispatcher import Dispatcher
from orchestrator.serving.dispatch.waking import Waking
from orchestrator.serving.link.connections import LinkServer
from orchestrator.serving.link.remote import listen
from orchestrator.serving.observe.evidence import Evidence
from orchestrator.serving.observe.gauges import Pulse
from orchestrator.serving.observe.observers import Observers
from orchestrator.serving.observe.record import Recorder
from orchestrator.serving.protocol.http import HttpServer
from orchestrator.serving.protocol.limits import Limits
from orchestrator.serving.protocol.listening import Listener
from orchestrator.serving.router.admission import Admission
from orchestrator.serving.router.backdoor import Backdoor
from orchestrator.serving.router.doors import Doors
from orchestrator.serving.router.front import Front
from orchestrator.serving.router.metrics_door import MetricsDoor
from orchestrator.serving.router.peers import Peers
from orchestrator.serving.router.routes import Routes
from orchestrator.serving.start import start
from orchestrator.serving.table import EMPTY, RoutingTable

_log: Final = logging.getLogger("orchestrator.serving.router")
_SWEEP_S: Final = 0.05
_CLOSE_SWEEPS: Final = 20
_STOP_S: Final = 5.0


class Router:
    """All parts of one router, wired."""

    def __init__(self, settings: RouterSettings) -> None:
        self.settings = settings
        self.recorder = Recorder()
        self.pulse = Pulse(_SWEEP_S)
        self._loop = asyncio.get_running_loop()
        self.dispatcher = Dispatcher(
            self.recorder,
            queue_limit=settings.queue_limit,
            replica_grace_s=settings.replica_grace_s,
            soon=self._loop.call_soon,
            later=self._loop.call_later,
        )
        self.evidence = self.dispatcher.witness = Evidence()
        self.routes = Routes(self.dispatcher)
        self.links = LinkServer(self.dispatcher)
        self.dispatcher.waking = Waking(
            self.links.agents, self.dispatcher.lanes, Path(settings.state) / "signatures.json"
        )
        self.admission = Admission(self.dispatcher, self.recorder, settings.request_timeout_s)
        limits = Limits()
        self.front = Front(self.routes, self.admission, limits, settings.compat)
        self.inner_front = Front(self.routes, self.admission, limits, settings.compat, probes=True)
        self.doors = Doors(settings, self.front, self.routes, self.admission, limits)
        self.public = self.doors.http
        self.peers = Peers(settings.peers)
        backdoor = Backdoor(self)
        self.admin = HttpServer(backdoor.handle, limits)
        # Router 0 speaks for all.
        port = -1 if settings.router else settings.metrics_port
        self.metrics_door = MetricsDoor(port, backdoor.handle, self.doors.guard, limits)
        self.observers = Observers(
            self.recorder,
            state=Path(settings.state),
            sample=settings.access_log_sample,
            otlp_endpoint=settings.otlp_endpoint,
            name_token=self.doors.name_token,
        )
        self._table_seen: object = None
        self._state = Path(settings.state)
        self._sweeps = 0

    def offer_table(self, table: RoutingTable) -> None:
        """Persist and apply a table.

        Raises:
            Conflict: It is fenced.
        """
        accepted = self.routes.table.replace(table)
        if accepted != self.routes.table:
            if not self.settings.lead_table:
                write_json(self._state / "table.json", accepted.to_json(), mode=0o600)
            self.apply(accepted)

    def apply(self, table: RoutingTable) -> None:
        """Route by `table` from the next request on."""
        self.routes.set_table(table, time.monotonic())
        self.front.table_changed()
        self.inner_front.table_changed()
        self.links.set_table(table)
        self.evidence.apply(table)
        _log.info("table version %d: %d endpoints", table.version, len(table.endpoints))

    def load_table(self) -> RoutingTable:
        """Return the table that the leading router has kept.

        Raises:
            ServingError: The file is damaged. Serving an older or empty table silently would be worse than not starting.
        """
        path = Path(self.settings.lead_table or self._state / "table.json")
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
        self._loop.add_signal_handler(signal.SIGHUP, lambda: self.doors.refresh(force=True))
        # The servers must stay referenced: uvloop closes one that is garbage-collected.
        servers: list[asyncio.Server | Listener] = [await self._unix_server(self.admin.protocol, self.settings.admin)]
        # Not before: a table that the leading router could not hand over has been written by now.
        self.apply(self.load_table())
        servers.append(await self._unix_server(self.links.protocol, self.settings.link))
        if self.settings.link_port:
            servers.append(self._remote_links())
        await self.doors.open()
        await self.metrics_door.open()
        self._write_state()
        self._sweep()
        _log.info("router listens on %s, gRPC on %s", self.doors.url, self.doors.grpc_url or "no port")
        # What lives now lives for ever; the collector need not walk it again.
        gc.collect()
        gc.freeze()
        # Seldom enough to cost nothing, often enough that cycles which libraries leave do not pile up.
        gc.set_threshold(5_000, 10, 10)
        await stop.wait()
        await self._stop(servers)

    def _remote_links(self) -> Listener:
        place = (self.settings.host, self.settings.link_port, Path(self.settings.link_token_file))
        return listen(self.links, *place, self.doors.tls_contexts)

    async def _unix_server(self, protocol: Any, path: str) -> asyncio.Server:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        previous = os.umask(0o177)
        try:
            return await self._loop.create_unix_server(protocol, path)
        finally:
            os.umask(previous)

    def _write_state(self) -> None:
        own = ProcessIdentity.own()
        facts = {
            "pid": own.pid,
            "started_ticks": own.started_ticks,
            "host": self.settings.host,
            "port": self.doors.port,
            "url": self.doors.url,
            "grpc": self.doors.grpc_url,
            "metrics": self.metrics_door.url,
            "admin": self.settings.admin,
            "link": self.settings.link,
        }
        write_json(self._state / "router.json", facts)

    def _sweep(self) -> None:
        # Not the loop's time: uvloop's has a resolution of 1 ms, and requests take less.
        now = time.monotonic()
        self.pulse.beat(now)
        self.dispatcher.sweep(now)
        self.routes.tick(now)
        self.recorder.tick(now)
        self.evidence.tick(now)
        self.observers.tick(now)
        self._sweeps += 1
        if self._sweeps % _CLOSE_SWEEPS == 0:
            self.public.sweep(self._loop.time())
            self.admin.sweep(self._loop.time())
            self.metrics_door.http.sweep(self._loop.time())
            self.doors.refresh()
            if self.settings.lead_table:
                self._follow()
        self._loop.call_later(_SWEEP_S, self._sweep)

    def _follow(self) -> None:
        """Take the leading router's table where it could not hand it over."""
        try:
            found = Path(self.settings.lead_table).stat()
            if (found.st_mtime_ns, found.st_ino) != self._table_seen:
                self._table_seen = (found.st_mtime_ns, found.st_ino)
                self.offer_table(self.load_table())
        except FileNotFoundError:
            return
        except OrchestratorError as error:
            _log.warning("the leading router's table: %s", error)

    async def _stop(self, servers: list[asyncio.Server | Listener]) -> None:
        """Take no new connection, answer what is here, within `_STOP_S`."""
        deadline = self._loop.time() + _STOP_S
        ending = self.doors.close(_STOP_S)
        self.metrics_door.close()
        while self._loop.time() < deadline and any(lane.busy for lane in self.dispatcher.lanes):
            await asyncio.sleep(0.02)
        if ending is not None:
            await ending
        self.observers.close()
        self.evidence.comparer.close()
        (self._state / "router.json").unlink(missing_ok=True)
        for server in servers:
            server.close()
        _log.info("router ends")


async def _main(settings: RouterSettings) -> None:
    await Router(settings).serve()


def main(argv: list[str] | None = None) -> int:
    """Run the router; returns the exit code."""

    def serve(settings: RouterSettings) -> None:
        private_folder(Path(settings.state))
        uvloop.run(_main(settings))

    return start("orchestrator.serving.router.process", RouterSettings, serve, argv)


if __name__ == "__main__":
    sys.exit(main())
