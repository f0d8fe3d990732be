"""The admin interface on the Unix socket: table, status, events, metrics, evidence."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, quote

import orjson

from orchestrator.core.errors import Conflict, ServingError
from orchestrator.serving.errors import RequestError
from orchestrator.serving.observe.gauges import exposition
from orchestrator.serving.protocol.exchange import JSON, TEXT, Exchange
from orchestrator.serving.router.control import CONTROL, control
from orchestrator.serving.router.front import allowed
from orchestrator.serving.router.peers import Status, merge_events, merge_evidence, merge_metrics, merge_status
from orchestrator.serving.table import RoutingTable

if TYPE_CHECKING:
    from orchestrator.serving.router.process import Router

_log: Final = logging.getLogger(__name__)
_MAX_EVENTS: Final = 10_000
_PATHS: Final = frozenset({"/table", "/status", "/events", "/metrics", "/evidence"})


class Backdoor:
    """Handles the exchanges of the admin socket. Whoever can open the socket (mode 0600) may do everything."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._tasks: set[asyncio.Task[bytes]] = set()
        self._evidence_told: dict[str, dict[int, Status]] = {}

    def handle(self, exchange: Exchange) -> None:
        """Answer one exchange."""
        path, _, query = exchange.target.decode("latin-1").partition("?")
        if CONTROL.fullmatch(path) is not None:
            if allowed(exchange, b"POST"):
                self._speak_for_all(exchange, control(self._router, path))
        elif path == "/v2" or path.startswith("/v2/"):
            self._router.inner_front.handle(exchange)
        elif path in ("/table", "/peer/table") and exchange.method == b"PUT":
            self._put_table(exchange, from_lead=path == "/peer/table")
        elif path not in _PATHS:
            exchange.fail(404, "no such path")
        elif allowed(exchange, b"GET, PUT" if path == "/table" else b"GET"):
            self._tell(exchange, path, query)

    def _tell(self, exchange: Exchange, path: str, query: str) -> None:
        if path == "/table":
            exchange.reply(200, [orjson.dumps(self._router.routes.table.to_json())])
        elif path == "/status":
            self._speak_for_all(exchange, self._tell_status())
        elif path == "/events":
            self._events(exchange, query)
        elif path == "/evidence":
            self._evidence(exchange, query)
        else:
            self._speak_for_all(exchange, self._tell_metrics(), TEXT)

    def _speak_for_all(self, exchange: Exchange, telling: Coroutine[Any, Any, bytes], kind: bytes = JSON) -> None:
        """Answer when the other routers have answered us."""
        task = asyncio.get_running_loop().create_task(telling)
        self._tasks.add(task)

        def done(task: asyncio.Task[bytes]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if isinstance(error, RequestError):
                exchange.refuse(error)
            elif error is not None:
                _log.error("admin request failed", exc_info=error)
                exchange.fail(500, "internal error")
            elif not task.cancelled():
                exchange.reply(200, [task.result()], kind)

        task.add_done_callback(done)

    async def _tell_status(self) -> bytes:
        others = await self._router.peers.ask_all("/status")
        return orjson.dumps(merge_status(self._status(), others))

    async def _tell_metrics(self) -> bytes:
        others = await self._router.peers.ask_all("/metrics")
        own = await exposition(self._router, str(self._router.settings.router))
        return merge_metrics(own, others) if others else own

    async def _tell_evidence(self, endpoint: str) -> bytes:
        router = self._router
        others = await router.peers.ask_all(f"/evidence?endpoint={quote(endpoint, safe='')}")
        own = {
            "router": router.settings.router,
            "boot": router.recorder.events.boot,
            **router.evidence.to_json(endpoint),
        }
        told = self._evidence_told = {
            name: rows for name, rows in self._evidence_told.items() if name in router.routes.endpoints
        }
        told[endpoint] = merge_evidence(own, others, told.get(endpoint, {}))
        return orjson.dumps({"routers": list(told[endpoint].values())})

    async def _tell_events(self, cursors: list[int], limit: int) -> bytes:
        each = max(1, limit // len(cursors))
        others = await self._router.peers.ask([f"/events?after={after}&limit={each}" for after in cursors[1:]])
        own = self._router.recorder.events.read(cursors[0], each)
        return orjson.dumps(merge_events(own, others, cursors) if self._router.peers else own)

    async def _hand_over(self, body: bytes, version: int) -> bytes:
        await self._router.peers.hand_over(body)
        return orjson.dumps({"version": version})

    def _put_table(self, exchange: Exchange, *, from_lead: bool) -> None:
        router = self._router.settings.router
        if router and not from_lead:
            exchange.fail(409, f"this is router {router}: router 0 takes the table and hands it over")
            return
        try:
            table = RoutingTable.from_json(orjson.loads(exchange.body))
            self._router.offer_table(table)
        except orjson.JSONDecodeError as error:
            exchange.fail(400, f"the table is no valid JSON: {error}")
        except Conflict as error:
            exchange.fail(409, error.message)
        except ServingError as error:
            exchange.fail(400, f"{error.place}: {error.message}")
        else:
            self._speak_for_all(exchange, self._hand_over(bytes(exchange.body), table.version))

    def _evidence(self, exchange: Exchange, query: str) -> None:
        endpoint = parse_qs(query).get("endpoint", [""])[0]
        if endpoint in self._router.routes.endpoints:
            self._speak_for_all(exchange, self._tell_evidence(endpoint))
        else:
            exchange.fail(404, f"no endpoint {endpoint[:80]!r} in the table: ask for /evidence?endpoint=NAME")

    def _events(self, exchange: Exchange, query: str) -> None:
        values = parse_qs(query)
        try:
            cursors, limit = (
                self._router.peers.cursors(values.get("after", ["0"])[0]),
                int(values.get("limit", ["1000"])[0]),
            )
        except ValueError:
            exchange.fail(400, "after must be 0 or the `last` of an earlier answer, limit a whole number")
            return
        self._speak_for_all(exchange, self._tell_events(cursors, max(1, min(limit, _MAX_EVENTS))))

    def _status(self) -> dict[str, object]:
        router = self._router
        replicas = [
            {
                "replica": replica.name,
                "endpoint": replica.endpoint,
                "bundle": replica.bundle,
                "generations": sorted(lane.generation.generation for lane in replica.lanes if not lane.retired),
                "device": replica.device,
                "runtime": replica.runtime,
                "stage": replica.stage,
                "in_flight": sum(len(batch.requests) for batch in replica.batches.values()),
                "max_batch": replica.signature.max_batch,
                "state": "draining" if replica.draining else "ready",
                "pid": replica.pid,
            }
            for replica in router.dispatcher.replicas()
        ]
        return {
            "boot": router.recorder.events.boot,
            "pid": os.getpid(),
            "url": router.doors.url,
            "grpc": router.doors.grpc_url,
            "version": router.routes.table.version,
            "generations": router.routes.lane_status(),
            "replicas": replicas,
            "agents": [connection.status() for connection in router.links.agents],
        }
