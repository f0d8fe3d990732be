"""A small HTTP proxy that misbehaves as told: drops replies after the server has done the work, answers 5xx, or waits."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclass
class Fault:
    """What to do with requests that match, and how often; `fired` proves that it happened.

    Attributes:
        matches: Gets method and path.
        kind: `drop` (execute, then close without a reply), `status` (answer `status` without executing),
            `delay` (wait `delay_s`, then go on), `html` (200 with a login page, not executed).
        times: How many requests it hits; then it lets all through.
    """

    matches: Callable[[str, str], bool]
    kind: str
    times: int = 1
    status: int = 503
    delay_s: float = 0.0
    fired: int = 0


@dataclass
class Proxy:
    """A running proxy; put faults into `faults`."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.fired < fault.times and fault.matches(method, path):
                    fault.fired += 1
                    return fault
        return None


def post(ending: str) -> Callable[[str, str], bool]:
    """Match POSTs whose path ends so."""
    return lambda method, path: method == "POST" and urlsplit(path).path.endswith(ending)


@contextlib.contextmanager
def proxy_to(target: str) -> Iterator[Proxy]:
    """Run a proxy in front of `target` (http://host:port)."""
    host, port = urlsplit(target).hostname, urlsplit(target).port
    assert host is not None

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            """Quiet."""

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            fault = proxy.take(self.command, self.path)
            if fault is not None and fault.kind == "delay":
                time.sleep(fault.delay_s)
            if fault is not None and fault.kind == "status":
                self._answer(fault.status, [], b"upstream said no")
                return
            if fault is not None and fault.kind == "html":
                self._answer(200, [("content-type", "text/html")], b"<html>please log in</html>")
                return
            onward = http.client.HTTPConnection(host, port, timeout=60)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
                onward.request(self.command, self.path, body or None, headers)
                reply = onward.getresponse()
                data = reply.read()
            finally:
                onward.close()
            if fault is not None and fault.kind == "drop":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self._answer(reply.status, [(k, v) for k, v in reply.getheaders() if k.lower() not in HOP], data)

        def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Broken pipes are the point."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """An address that accepts connections and never answers (a half-open peer)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
