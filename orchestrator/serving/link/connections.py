"""The router's end of the link: one connection per replica and per agent."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final, cast

from orchestrator.serving.agent.device_figures import Received, read_figures
from orchestrator.serving.dispatch.dispatcher import Dispatcher
from orchestrator.serving.dispatch.fairness import Slot
from orchestrator.serving.dispatch.lanes import Replica
from orchestrator.serving.dispatch.queueing import rows_by_shape
from orchestrator.serving.link.dial import SEND_BUFFER_BYTES
from orchestrator.serving.link.frames import Frame as LinkFrame
from orchestrator.serving.link.frames import FrameReader, Kind, LinkError, encode
from orchestrator.serving.link.reports import ReplicaReport, read_report
from orchestrator.serving.link.wire import (
    AgentHello,
    ReplicaHello,
    read_credit,
    read_hello,
)
from orchestrator.serving.placing import is_shared_out, place
from orchestrator.serving.protocol.tensors import Buffer
from orchestrator.serving.table import RoutingTable

_JOIN_BYTES: Final = 1 << 16
_log: Final = logging.getLogger(__name__)
_SETTLE_S: Final = 0.5


class LinkServer:
    """What the link's connections share."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.table: RoutingTable = RoutingTable(0)
        self.agents: set[LinkConnection] = set()
        self._settling: set[str] = set()

    def protocol(self) -> LinkConnection:
        """Make the protocol of a new connection; pass this method to `create_unix_server`."""
        return LinkConnection(self)

    def set_table(self, table: RoutingTable) -> None:
        """Tell every agent what its pool must run now."""
        self.table = table
        for connection in self.agents:
            connection.send_placements()

    def agents_changed(self, pool: str) -> None:
        """Share the endpoints of a pool out anew: soon, because agents of a router that has just started come one by one."""
        if pool not in self._settling and is_shared_out(self.table, pool):
            self._settling.add(pool)
            asyncio.get_running_loop().call_later(_SETTLE_S, self._settled, pool)

    def _settled(self, pool: str) -> None:
        self._settling.discard(pool)
        for connection in self.agents:
            if connection.agent is not None and connection.agent.pool == pool:
                connection.send_placements()


class LinkConnection(asyncio.Protocol):
    """A replica or an agent; its hello frame says which."""

    def __init__(self, server: LinkServer) -> None:
        self._server = server
        self._reader = FrameReader()
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.replica: Replica | None = None
        self.agent: AgentHello | None = None
        self.agent_version = 0
        self.reports: Sequence[ReplicaReport] = ()
        self.figures: Received | None = None
        self.wakes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)
        link = cast("socket.socket | None", transport.get_extra_info("socket"))
        if link is not None and link.family == socket.AF_UNIX:  # TCP finds its own size
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            for frame in self._reader.feed(data):
                self._handle(frame)
        except LinkError as error:
            who = self.replica.name if self.replica else self.agent.pool if self.agent else "a peer"
            _log.warning("link of %s ends: %s", who, error)
            self._send([encode(Kind.BYE, {"reason": error.message})])
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the name is asyncio's
        """Called by the event loop."""
        self._server.agents.discard(self)
        if self.agent is not None:
            self._server.dispatcher.agent_reported(time.monotonic())
        if self.agent is not None:
            self._server.agents_changed(self.agent.pool)
        if self.replica is not None:
            replica, self.replica = self.replica, None
            self._server.dispatcher.lost(replica, time.monotonic())

    def _handle(self, frame: LinkFrame) -> None:
        replica, now = self.replica, time.monotonic()
        if replica is not None and frame.kind is Kind.REPLY:
            self._server.dispatcher.reply(replica, frame, now)
        elif replica is not None and frame.kind is Kind.CREDIT:
            self._server.dispatcher.credit(replica, read_credit(frame), now)
        elif self.agent is not None and frame.kind is Kind.REPORT:
            self.agent_version, self.reports = read_report(frame)
            self.figures = read_figures(frame)
            self.wakes = 0
            self._server.dispatcher.agent_reported(now)
        elif replica is not None and frame.kind is Kind.DRAIN:
            self._server.dispatcher.leaves(replica)
        elif frame.kind is Kind.HELLO and replica is None and self.agent is None:
            self._hello(read_hello(frame), now)
        elif frame.kind is Kind.BYE:
            self._transport.close()
        else:
            raise LinkError(f"unexpected {frame.kind.name.lower()} frame")

    def _hello(self, hello: ReplicaHello | AgentHello, now: float) -> None:
        if isinstance(hello, AgentHello):
            self.agent = hello
            self._server.agents.add(self)
            self._server.agents_changed(hello.pool)
            if not is_shared_out(self._server.table, hello.pool):
                self.send_placements()
            return
        replica = Replica(
            hello.replica,
            hello.pid,
            hello.endpoint,
            hello.bundle,
            hello.runtime,
            hello.device,
            hello.signature,
            self._send,
            variant=hello.variant,
            stage=hello.stage,
            slot=Slot(hello.slot),
            depth=hello.depth,
            gears=rows_by_shape(hello.buckets, hello.signature),
        )
        self._server.dispatcher.register(replica, now)
        self.replica = replica
        if hello.load == "lazy" and self._server.dispatcher.waking is not None:
            self._server.dispatcher.waking.remember(replica)

    def _send(self, pieces: Sequence[Buffer]) -> None:
        if not self._transport.is_closing():
            if sum(map(len, pieces)) <= _JOIN_BYTES:
                self._transport.write(b"".join(pieces))
            else:
                self._transport.writelines(pieces)

    def tell(self, kind: Kind, head: Mapping[str, object]) -> None:
        """Send the agent a frame without a body."""
        self._send([encode(kind, head)])

    def send_placements(self) -> None:
        """Send what the agent's pool must run."""
        assert self.agent is not None
        table = self._server.table
        placing = place(table, self.agent, [peer.agent for peer in self._server.agents if peer.agent is not None])
        rows = [placement.to_json() for placement in placing.placements]
        head = {"version": table.version, "placements": rows, "elsewhere": list(placing.elsewhere)}
        self._send([encode(Kind.PLACEMENTS, head)])

    def status(self) -> dict[str, object]:
        """Return the agent's row of the router's status."""
        assert self.agent is not None
        hello = self.agent.to_json()
        del hello["role"]
        fresh = self.figures is not None and self.figures.fresh
        figures = {"figures": asdict(self.figures.figures)} if self.figures is not None and fresh else {}
        reports = [report.to_json() for report in self.reports]
        return {**hello, "version": self.agent_version, "replicas": reports, **figures}
