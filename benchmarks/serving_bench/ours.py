"""Our own pool: the real router and replicas, of a runtime that gives back what it gets, or of a real model behind an agent."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from orchestrator.serving.config import RouterSettings
from serving_bench.server import ROOT, NotServed, Server

sys.path.insert(0, str(ROOT))
from tests.support.serving_site import DEVICE, ServingSite, generation, scale_bundle, write_bundle

ECHO = Path(__file__).parent / "servers" / "echo_replica.py"


@dataclass(frozen=True)
class Pool:
    """Where it listens."""

    server: Server
    site: ServingSite
    http_port: int
    grpc_port: int


@contextmanager
def _site(name: str, routers: int, settings: dict[str, Any]) -> Generator[Pool]:
    if routers > 1:
        if "routers" not in {field.name for field in dataclasses.fields(RouterSettings)}:
            raise NotServed("this version starts one router")
        settings = {**settings, "routers": routers}
    with Server(name) as server:
        site = ServingSite(server.folder / "site", env=server.environment, **settings)
        try:
            site.start_router()
            ports = [urlsplit(url if "//" in url else f"//{url}").port or 0 for url in (site.url, site.grpc)]
            yield Pool(server, site, *ports)
        except AssertionError as error:
            raise NotServed(f"the site did not start: {error}") from error
        finally:
            site.stop()


@contextmanager
def echo_pool(*, routers: int = 1, replicas: int = 1, batch_ms: float = 0, **settings: Any) -> Generator[Pool]:
    """Yield a pool that serves `echo`, whose replicas the table knows like any other."""
    with _site(f"ours-{routers}", routers, settings) as pool:
        site, server = pool.site, pool.server
        bundle = scale_bundle(server.folder / "made" / "echo", 1.0)
        site.put({"echo": {"pool": "edge", "generations": [generation(1, bundle)]}})
        links = sorted(str(path) for path in site.short.glob("*link*.sock"))
        for number in range(replicas):
            config = server.folder / f"replica-{number}.json"
            row: dict[str, Any] = {
                "replica": f"echo-{number}",
                "endpoint": "echo",
                "bundle": bundle[0],
                "path": str(bundle[1]),
                "runtime": "echo",
                "device": DEVICE,
            }
            row |= {"link": links[0], **({"links": links[1:]} if links[1:] else {})}
            config.write_text(json.dumps(row))
            server.start(
                [sys.executable, str(ECHO), "--config", str(config)], PYTHONPATH=str(ROOT), ECHO_MS=str(batch_ms)
            )
        server.wait(lambda: len(site.replica_pids("echo")) >= replicas, 20)
        yield pool


@contextmanager
def model_pool(name: str, model: Path, golden: dict[str, np.ndarray[Any, Any]], **settings: Any) -> Generator[Pool]:
    """Yield a pool whose agent serves this graph on onnx-cpu, as a deploy does."""
    import onnx

    with _site(f"ours-{name}", 1, settings) as pool:
        bundle = write_bundle(pool.server.folder / "made" / name, onnx.load(model), golden)
        pool.site.start_agent()
        pool.site.serve(name, generation(1, bundle), timeout_s=120)
        yield pool


def cores() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))
