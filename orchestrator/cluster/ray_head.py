"""How the local Ray head is started: all ports explicit, loopback only, token on, and no more processes than needed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import orchestrator
from orchestrator.cluster.devices import NPU_RESOURCE, pool_resource
from orchestrator.cluster.ports import RayPorts
from orchestrator.cluster.site import MARKER, LocalSite

_OBJECT_STORE_BYTES: Final = 200_000_000
"""Models travel as files; Ray's default of 30 % of memory would starve training on a laptop."""
READY_FILE: Final = "ray_current_cluster"
"""`ray start` writes it below its temp folder when the head takes drivers."""
_FOREIGN: Final = ("RAY_", "__RAY_", "ORCHESTRATE_FAULT")
"""Settings meant for another cluster or for one process under test do not leak into the site."""

LOOPBACK: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's laptop mode. Off (the Linux default) it replaces 127.0.0.1 by the host's address and listens on all interfaces."""
AUTH: Final = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


def clean_environment(site: LocalSite) -> dict[str, str]:
    """Return our environment for the site's processes: marked, without foreign Ray settings, able to import us."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    root = Path(orchestrator.__file__).resolve().parent.parent
    folders = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if root.name != "site-packages" and str(root) not in folders:
        folders.append(str(root))
    if folders:
        env["PYTHONPATH"] = os.pathsep.join(folders)
    # Ray finds `python` for some of its own helpers by PATH.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    env[MARKER] = site.id
    return env


def head_environment(site: LocalSite, ports: RayPorts) -> dict[str, str]:
    """Return the environment of the Ray head; workers inherit it. The token is named by path, never by value."""
    return {
        **clean_environment(site),
        **LOOPBACK,
        **AUTH,
        "RAY_AUTH_TOKEN_PATH": str(site.token_path),
        "RAY_START_HOOK": "orchestrator.cluster.ray_start.configure_head",
        "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "orchestrator.cluster.ray_start.close_serve_port",
        "ORCHESTRATE_RUNTIME": str(site.runtime),
        "RAY_enable_metrics_collection": "0",
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
    }


def head_command(site: LocalSite, ports: RayPorts) -> list[str]:
    """Return the command of the Ray head; CPUs and GPUs are what Ray detects, NPUs what `up` has counted."""
    flags: Mapping[str, object] = {
        "port": ports.gcs,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": ports.dashboard,
        "dashboard-agent-listen-port": ports.agent_http,
        "dashboard-agent-grpc-port": ports.agent_grpc,
        "runtime-env-agent-port": ports.runtime_env_agent,
        "metrics-export-port": ports.metrics_export,
        "node-manager-port": ports.node_manager,
        "object-manager-port": ports.object_manager,
        "min-worker-port": ports.first_worker,
        "max-worker-port": ports.last_worker,
        "temp-dir": ray_folder(site),
        "object-store-memory": _OBJECT_STORE_BYTES,
        "resources": json.dumps(_slots(site), sort_keys=True),
        "log-color": "false",
    }
    start = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--no-monitor"]
    return [*start, *(f"--{name}={value}" for name, value in flags.items())]


def ray_folder(site: LocalSite) -> Path:
    """Return Ray's temp folder."""
    return site.runtime / "r"


def _slots(site: LocalSite) -> dict[str, int]:
    """Return the resources that Ray does not see by itself: it may lack pyACL, which it counts NPUs with."""
    found = {pool_resource(name, pool): pool.slots for name, pool in site.pools.items() if pool.rehearsal}
    return found | ({NPU_RESOURCE: site.npus} if site.npus else {})
