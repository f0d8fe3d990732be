"""The public door: Open Inference Protocol v2 paths to answers."""

from __future__ import annotations

import re
import time
from typing import Final
from urllib.parse import unquote

import orjson

from orchestrator import __version__
from orchestrator.serving.dispatch import Dispatcher, retry_after
from orchestrator.serving.errors import RequestError
from orchestrator.serving.exchange import Exchange
from orchestrator.serving.lanes import Lane, Request
from orchestrator.serving.oip import parse_request
from orchestrator.serving.record import Recorder
from orchestrator.serving.routes import EndpointRoute, Routes, signature_of
from orchestrator.serving.signature import fit

_MODEL: Final = re.compile(r"/v2/models/([^/]*)(?:/versions/([^/]*))?(/infer|/ready)?")
_SERVER: Final = orjson.dumps({"name": "orchestrate", "version": __version__, "extensions": ["binary_tensor_data"]})
_TYPES: Final = (b"application/json", b"application/octet-stream", b"")
_CACHE: Final = 1024

Place = tuple[EndpointRoute, int | None]


class Front:
    """Handles the exchanges of the public listener.

    Args:
        request_timeout_s: From the whole request to its answer; a client may ask for less with parameter `timeout`.
    """

    def __init__(self, routes: Routes, dispatcher: Dispatcher, recorder: Recorder, request_timeout_s: float) -> None:
        self._routes = routes
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._timeout_s = request_timeout_s
        self._infer: dict[bytes, Place] = {}

    def table_changed(self) -> None:
        """Forget where paths led."""
        self._infer.clear()

    def handle(self, exchange: Exchange) -> None:
        """Answer one exchange now, or hand it to the dispatcher."""
        place = self._infer.get(exchange.target)
        if place is not None and exchange.method == b"POST":
            self._do_infer(exchange, place)
            return
        try:
            self._route(exchange)
        except RequestError as error:
            exchange.fail(error.status, error.message, retry_after(error))

    def _route(self, exchange: Exchange) -> None:
        path = exchange.target.partition(b"?")[0].decode("latin-1")
        if path in ("/v2", "/v2/"):
            if allowed(exchange, b"GET, HEAD"):
                exchange.reply(200, [_SERVER])
        elif path in ("/v2/health/live", "/v2/health/ready"):
            self._health(exchange, path)
        elif (match := _MODEL.fullmatch(path)) is not None:
            self._model(exchange, match)
        else:
            raise RequestError("no such path", status=404, kind="not_found")

    def _health(self, exchange: Exchange, path: str) -> None:
        if not allowed(exchange, b"GET, HEAD"):
            return
        if path == "/v2/health/live":
            exchange.reply(200, [b'{"live":true}'])
            return
        ready = all(route.ready(None) for route in self._routes.endpoints.values() if route.splitter.weights)
        exchange.reply(
            200 if ready else 503, [b'{"ready":true,"live":true}' if ready else b'{"ready":false,"live":true}']
        )

    def _model(self, exchange: Exchange, match: re.Match[str]) -> None:
        name, version, verb = unquote(match[1]), match[2], match[3]
        route = self._routes.endpoints.get(name)
        if route is None:
            raise RequestError(f"Request for unknown model: {name[:80]!r} is not found", status=404, kind="not_found")
        generation = None if version is None else _generation(route, version)
        if verb == "/infer":
            if not allowed(exchange, b"POST"):
                return
            if len(self._infer) < _CACHE:
                self._infer[exchange.target] = (route, generation)
            self._do_infer(exchange, (route, generation))
        elif not allowed(exchange, b"GET, HEAD"):
            return
        elif verb == "/ready":
            ready = route.ready(generation)
            exchange.reply(200 if ready else 503, [orjson.dumps({"name": name, "ready": ready})])
        else:
            exchange.reply(200, [orjson.dumps(route.metadata(generation))])

    def _do_infer(self, exchange: Exchange, place: Place) -> None:
        lane: Lane | None = None
        now = time.monotonic()
        try:
            headers = exchange.headers
            if not _type_allowed(headers.get(b"content-type", b"")):
                raise RequestError("content-type must be application/json or application/octet-stream", status=415)
            if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                raise RequestError("content-encoding is not supported", status=415)
            asked = parse_request(exchange.body, headers.get(b"inference-header-content-length"))
            lane = place[0].choose(place[1])
            fitted = fit(asked, signature_of(lane))
            timeout_s = self._timeout_s
            if asked.timeout_us is not None:
                timeout_s = min(timeout_s, asked.timeout_us / 1e6)
            synthetic = b"x-orchestrate-probe" in headers
            request = Request(exchange, lane, fitted, asked.id, now, now + timeout_s, synthetic)
            self._dispatcher.submit(request)
        except RequestError as error:
            self._refused(exchange, place[0], lane, error, now)

    def _refused(
        self, exchange: Exchange, route: EndpointRoute, lane: Lane | None, error: RequestError, arrived: float
    ) -> None:
        exchange.fail(error.status, error.message, (lane.headers if lane else b"") + retry_after(error))
        took_s = time.monotonic() - arrived
        self._recorder.record(
            route.name,
            lane.generation if lane else None,
            error.status,
            error.kind,
            queue_s=took_s,
            total_s=took_s,
            synthetic=b"x-orchestrate-probe" in exchange.headers,
        )


def allowed(exchange: Exchange, methods: bytes) -> bool:
    """Return whether the method is one of `methods` (`GET, HEAD`); answers 405 where it is not."""
    if exchange.method in methods.split(b", "):
        return True
    exchange.fail(405, f"use {methods.decode()} here", b"allow: %b\r\n" % methods)
    return False


def _type_allowed(content_type: bytes) -> bool:
    return content_type in _TYPES or content_type.partition(b";")[0].strip().lower() in _TYPES


def _generation(route: EndpointRoute, version: str) -> int:
    if not (version.isascii() and version.isdigit() and len(version) < 12 and int(version) in route.lanes):
        text = f"Request for unknown model: {route.name!r} version {unquote(version)[:40]} is not found"
        raise RequestError(text, status=404, kind="not_found")
    return int(version)
