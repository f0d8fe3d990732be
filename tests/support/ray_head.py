"""A private Ray head on loopback, started and ended by process id."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.cluster.ports import pick_ports
from orchestrator.cluster.ray_head import AUTH, LOOPBACK
from orchestrator.core.ids import new_token
from orchestrator.core.processes import end_processes, pids_with_environment
from orchestrator.steps.api import SiteInfo

MARKER = "ORCHESTRATE_TEST_RAY"


@contextmanager
def private_ray(cpus: int = 2) -> Iterator[SiteInfo]:
    """Yield the site of a cluster with `cpus` logical CPUs and no GPU."""
    folder = Path(tempfile.mkdtemp(prefix="oray", dir="/tmp"))
    token, marker, ports = folder / "token", new_token(8), pick_ports(40)
    token.write_text(new_token())
    token.chmod(0o600)
    flags = {
        "port": ports.gcs,
        "dashboard-agent-listen-port": ports.agent_http,
        "dashboard-agent-grpc-port": ports.agent_grpc,
        "runtime-env-agent-port": ports.runtime_env_agent,
        "metrics-export-port": ports.metrics_export,
        "node-manager-port": ports.node_manager,
        "object-manager-port": ports.object_manager,
        "min-worker-port": ports.first_worker,
        "max-worker-port": ports.last_worker,
        "temp-dir": folder / "r",
        "object-store-memory": 100_000_000,
        "num-cpus": cpus,
        "num-gpus": 0,
        "include-dashboard": "false",
    }
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | LOOPBACK | AUTH
    env |= {"RAY_AUTH_TOKEN_PATH": str(token), MARKER: marker, "RAY_enable_metrics_collection": "0"}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    with (folder / "log").open("wb") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while not (folder / "r" / "ray_current_cluster").exists():
            alive = head.poll() is None and time.monotonic() < deadline
            assert alive, (folder / "log").read_text()
            time.sleep(0.1)
        yield SiteInfo("private", True, folder, f"127.0.0.1:{ports.gcs}", str(token))
    finally:
        session = head.pid
        found = set(pids_with_environment(MARKER, marker)) | set(_of_session(session))
        end_processes(sorted(found), grace_s=1.0)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _of_session(session: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session:
                    yield int(entry.name)
            except ProcessLookupError:
                continue
