"""The admin interface on the Unix socket: table, status, events, metrics."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import orjson

from orchestrator.core.errors import Conflict, ServingError
from orchestrator.serving.exchange import TEXT, Exchange
from orchestrator.serving.front import allowed
from orchestrator.serving.gauges import exposition
from orchestrator.serving.table import RoutingTable

if TYPE_CHECKING:
    from orchestrator.serving.router import Router

_MAX_EVENTS: Final = 10_000


class Backdoor:
    """Handles the exchanges of the admin socket. Whoever can open the socket (mode 0600) may do everything."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def handle(self, exchange: Exchange) -> None:
        """Answer one exchange."""
        path, _, query = exchange.target.decode("latin-1").partition("?")
        if path == "/table" and exchange.method == b"PUT":
            self._put_table(exchange)
        elif path not in ("/table", "/status", "/events", "/metrics"):
            exchange.fail(404, "no such path")
        elif not allowed(exchange, b"GET, PUT" if path == "/table" else b"GET"):
            return
        elif path == "/table":
            exchange.reply(200, [orjson.dumps(self._router.routes.table.to_json())])
        elif path == "/status":
            exchange.reply(200, [orjson.dumps(self._status())])
        elif path == "/events":
            self._events(exchange, query)
        else:
            exchange.reply(200, [exposition(self._router)], TEXT)

    def _put_table(self, exchange: Exchange) -> None:
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
            exchange.reply(200, [orjson.dumps({"version": table.version})])

    def _events(self, exchange: Exchange, query: str) -> None:
        values = parse_qs(query)
        try:
            after, limit = int(values.get("after", ["0"])[0]), int(values.get("limit", ["1000"])[0])
        except ValueError:
            exchange.fail(400, "after and limit must be whole numbers")
            return
        found = self._router.recorder.events.read(max(0, after), max(1, min(limit, _MAX_EVENTS)))
        exchange.reply(200, [orjson.dumps(found)])

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
            "url": router.url,
            "grpc": router.grpc_url,
            "version": router.routes.table.version,
            "generations": router.routes.lane_status(),
            "replicas": replicas,
            "agents": [connection.status() for connection in router.links.agents],
        }
