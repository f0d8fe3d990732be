"""The public door: Open Inference Protocol v2 paths, and Triton's read-only additions, to answers."""

from __future__ import annotations

import asyncio
import math
import re
import time
from typing import Final, cast
from urllib.parse import unquote

import orjson

from orchestrator.serving.errors import RequestError
from orchestrator.serving.protocol import codings
from orchestrator.serving.protocol.exchange import Exchange
from orchestrator.serving.protocol.forms import Forms
from orchestrator.serving.protocol.limits import Limits
from orchestrator.serving.router import describe
from orchestrator.serving.router.admission import Admission
from orchestrator.serving.router.control import CONTROL
from orchestrator.serving.router.routes import Place, Routes

_MODEL: Final = re.compile(r"/v2/models/([^/]*)(?:/versions/([^/]*))?(/infer|/ready|/config|/stats)?")
_TYPES: Final = (b"application/json", b"application/octet-stream", b"")
_PATIENCE: Final = b"x-request-timeout-seconds"
_PROBE: Final = b"x-orchestrate-probe"


class Front:
    """Handles the exchanges of the public listener.

    Args:
        limits: Of the listener; what a coded body decodes to is held to them as well.
        compat: See `RouterSettings`.
        probes: Whether a request may say that it is a probe and no user's: only who operates the router may.
    """

    def __init__(
        self, routes: Routes, admission: Admission, limits: Limits, compat: str, *, probes: bool = False
    ) -> None:
        self._routes = routes
        self._admission = admission
        self._limits = limits
        self._compat = compat
        self._probes = probes
        self._infer: dict[bytes, Place] = {}
        self._forms = Forms()

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
            exchange.refuse(error)

    def _route(self, exchange: Exchange) -> None:
        target, _, query = exchange.target.partition(b"?")
        if query and exchange.method == b"POST" and (place := self._infer.get(target)) is not None:
            self._do_infer(exchange, place)
            return
        path = target.decode("latin-1")
        if path in ("/v2", "/v2/"):
            _show(exchange, describe.server(self._compat))
        elif path == "/v2/health/live":
            _show(exchange, {"live": True})
        elif path == "/v2/health/ready":
            ready = self._routes.ready()
            _show(exchange, {"ready": ready, "live": True}, 200 if ready else 503)
        elif path == "/v2/models/stats" and "stats" not in self._routes.endpoints:
            _show(exchange, describe.statistics(self._routes, None))
        elif path == "/v2/repository/index":
            self._index(exchange)
        elif (match := _MODEL.fullmatch(path)) is not None:
            self._model(exchange, match)
        elif CONTROL.fullmatch(path) is not None:
            text = "models are loaded and unloaded on the router's admin socket alone, which `orchestrate site status` shows"
            raise RequestError(text, status=403, kind="forbidden")
        else:
            raise RequestError("no such path", status=404, kind="not_found")

    def _index(self, exchange: Exchange) -> None:
        if not allowed(exchange, b"POST"):
            return
        try:
            asked: object = orjson.loads(exchange.body) if exchange.body else {}
        except orjson.JSONDecodeError as error:
            raise RequestError(f"the request is no valid JSON: {error}") from error
        ready = cast("dict[str, object]", asked).get("ready", False) if isinstance(asked, dict) else None
        if not isinstance(ready, bool):
            raise RequestError('the request must be an object such as {"ready": true}')
        exchange.reply(200, [orjson.dumps(describe.index(self._routes, ready=ready))])

    def _model(self, exchange: Exchange, match: re.Match[str]) -> None:
        name, version, verb = unquote(match[1]), match[2], match[3]
        if version == "":
            raise RequestError("the version is empty", status=404, kind="not_found")
        place = self._routes.find(name, version and unquote(version))
        if verb == "/infer":
            if not allowed(exchange, b"POST"):
                return
            if match[1] == name and version in (None, str(place[1])):  # one way to write each: as many as the table has
                self._infer[match[0].encode("latin-1")] = place
            self._do_infer(exchange, place)
        elif verb == "/ready":
            ready = place[0].ready(place[1])
            _show(exchange, {"name": name, "ready": ready}, 200 if ready else 503)
        elif verb == "/config":
            _show(exchange, describe.config(place))
        elif verb == "/stats":
            _show(exchange, describe.statistics(self._routes, place))
        else:
            _show(exchange, describe.metadata(place))

    def _do_infer(self, exchange: Exchange, place: Place) -> None:
        arrived, headers = time.monotonic(), exchange.headers
        try:
            if not _type_allowed(headers.get(b"content-type", b"")):
                raise RequestError("content-type must be application/json or application/octet-stream", status=415)
            coding = headers.get(b"content-encoding", b"identity")
            if coding != b"identity" and coding.lower() != b"identity":
                self._decode(exchange, place, coding, arrived)
                return
            self._submit(exchange, place, arrived)
        except RequestError as error:
            self._refuse(exchange, place, error, arrived)

    def _submit(self, exchange: Exchange, place: Place, arrived: float) -> None:
        headers = exchange.headers
        patience_s = _patience_s(headers[_PATIENCE]) if _PATIENCE in headers else math.inf
        asked = self._forms.parse(exchange.body, headers.get(b"inference-header-content-length"))
        self._admission.submit(exchange, place, asked, arrived, patience_s, self._probes and _PROBE in headers)

    def _refuse(self, exchange: Exchange, place: Place, error: RequestError, arrived: float) -> None:
        self._admission.refuse(exchange, place, None, error, arrived, self._probes and _PROBE in exchange.headers)

    def _decode(self, exchange: Exchange, place: Place, coding: bytes, arrived: float) -> None:
        body, limit = exchange.body, self._limits.body
        if len(body) <= codings.INLINE_BYTES:
            exchange.replace_body(codings.decode(body, coding, limit))
            self._submit(exchange, place, arrived)
            return

        def go_on(done: asyncio.Future[bytes]) -> None:
            try:
                exchange.replace_body(done.result())
                route, version = place  # the table may have changed meanwhile
                now = self._routes.find(route.name, None if version is None else str(version))
                self._submit(exchange, now, arrived)
            except RequestError as error:
                self._refuse(exchange, place, error, arrived)

        loop = asyncio.get_running_loop()
        loop.run_in_executor(codings.WORKERS, codings.decode, body, coding, limit).add_done_callback(go_on)


def allowed(exchange: Exchange, methods: bytes) -> bool:
    """Return whether the method is one of `methods` (`GET, HEAD`); answers 405 where it is not."""
    if exchange.method in methods.split(b", "):
        return True
    exchange.fail(405, f"use {methods.decode()} here", b"allow: %b\r\n" % methods)
    return False


def _show(exchange: Exchange, shown: object, status: int = 200) -> None:
    if allowed(exchange, b"GET, HEAD"):
        exchange.reply(status, [orjson.dumps(shown)])


def _type_allowed(content_type: bytes) -> bool:
    return content_type in _TYPES or content_type.partition(b";")[0].strip().lower() in _TYPES


def _patience_s(value: bytes) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise RequestError(f"{_PATIENCE.decode()} must be a number of seconds above 0, not {value[:40]!r}")
    return found
