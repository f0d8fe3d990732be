"""Our own pool: the real router and replicas, of a runtime that gives back what it gets, or of a real model behind an agent."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.bundle.golden import write_golden
from orchestrator.bundle.oci import BundleParts, build_layout, unpack
from orchestrator.core.digests import Digest
from serving_bench.job import Job
from serving_bench.payloads import OIP_PATH, every, small
from serving_bench.server import ROOT, NotServed, Server, load

sys.path.insert(0, str(ROOT))
from tests.support.serving_site import DEVICE, ServingSite, generation, scale_bundle

SERVE = {"schema": 1, "preprocess": None, "postprocess": None, "inputs": None, "outputs": None, "max_queue_delay_ms": 0,
         "priority": None, "pinned": False, "share": 1.0, "isolation": "process", "files": []}  # fmt: skip
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
    with Server(name) as server:
        site = ServingSite(server.folder / "site", env=server.environment, routers=routers, **settings)
        try:
            site.start_router()
            ports = [urlsplit(url if "//" in url else f"//{url}").port or 0 for url in (site.url, site.grpc)]
            yield Pool(server, site, *ports)
        except AssertionError as error:
            raise NotServed(f"the site did not start: {error}") from error
        finally:
            site.stop()


def _all_answer(port: int) -> bool:
    """Tell whether every router has its replicas: connections are spread over the routers by the kernel."""
    found = load(Job(port, every(small(8), "json", OIP_PATH.format("echo")), seconds=0.1, warmup_s=0.0))
    return list(found["answers"]) == ["200"]


@contextmanager
def echo_pool(*, routers: int = 1, replicas: int = 1, batch_ms: float = 0, **settings: Any) -> Generator[Pool]:
    """Yield a pool that serves `echo`, whose replicas the table knows like any other."""
    with _site(f"ours-{routers}", routers, settings) as pool:
        site, server = pool.site, pool.server
        bundle = scale_bundle(server.folder / "made" / "echo", 1.0)
        site.put({"echo": {"pool": "edge", "generations": [generation(1, bundle)]}})
        others = [str(site.short / f"link-{number}.sock") for number in range(1, routers)]
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
            row |= {"link": str(site.short / "link.sock"), "links": others}
            row |= {"work": str(server.folder / f"work-{number}")}
            config.write_text(json.dumps(row))
            server.start(
                [sys.executable, str(ECHO), "--config", str(config)], PYTHONPATH=str(ROOT), ECHO_MS=str(batch_ms)
            )
        server.wait(lambda: len(set(site.replica_pids("echo"))) >= replicas, 20)
        server.wait(lambda: _all_answer(pool.http_port), 20)
        yield pool


def _bundle(folder: Path, model: Path, golden: Mapping[str, Any], max_batch: int) -> tuple[Digest, Path]:
    """Make a bundle whose recipe says `serve: {max_batch}`, and unpack it as a serve site does."""
    (folder / "onnx").mkdir(parents=True)
    shutil.copy(model, folder / "onnx" / "model.onnx")
    inputs, outputs = ({name.removeprefix(kind): array for name, array in golden.items() if name.startswith(kind)}
                       for kind in ("input/", "output/"))  # fmt: skip
    write_golden(folder / "golden.safetensors", inputs, outputs)
    (folder / "serve.json").write_text(json.dumps({**SERVE, "max_batch": max_batch}))
    extra = {"serve.json": folder / "serve.json"}
    parts = BundleParts(folder.name, folder / "onnx", folder / "golden.safetensors", {"name": folder.name}, extra=extra)
    digest = Digest(build_layout(parts, folder / "layout"))
    return digest, unpack(folder / "layout", folder / "bundles", expected=digest)


@contextmanager
def model_pool(name: str, model: Path, golden: Mapping[str, Any], max_batch: int, **settings: Any) -> Generator[Pool]:
    """Yield a pool whose agent serves this graph on onnx-cpu, as a deploy does."""
    with _site(f"ours-{name}", 1, settings) as pool:
        bundle = _bundle(pool.server.folder / "made" / name, model, golden, max_batch)
        pool.site.start_agent()
        pool.site.serve(name, generation(1, bundle), timeout_s=120)
        yield pool


def cores() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))
