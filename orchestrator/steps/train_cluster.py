"""The train site's Ray cluster as the train step sees it: connect, look what is there, choose the device, wait for room."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

from orchestrator.cluster.capacity import NodeCapacity, require_capacity
from orchestrator.core.errors import DeviceError, InfraError, NoCapacity, Unreachable
from orchestrator.steps.api import SiteInfo, StepEvents

_CONNECT_S: Final = 5.0
_ROOM_S: Final = 60.0
_LOOPBACK: Final = ("127.0.0.1", "localhost")
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_DRIVER_SETTINGS: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray Train looks after its workers every 2 s by default; a short training would wait for that at both ends.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # The user's code runs in the recipe's folder, not in one of Ray's.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Ray would log every print() of a worker twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where training will run.

    Attributes:
        device: `cuda` or `cpu`.
        asked: What the recipe asked for.
        per_worker: Ray resources of each worker.
    """

    device: str
    asked: str
    per_worker: Mapping[str, float]

    @property
    def text(self) -> str:
        """`cuda`, `cpu`, or `cpu (asked: cuda)`."""
        return self.device if self.device == self.asked else f"{self.device} (asked: {self.asked})"


@contextmanager
def connected(site: SiteInfo) -> Generator[None]:
    """Be a driver of the site's cluster for the length of the block.

    Raises:
        InfraError: The site has no Ray.
        Unreachable: Nothing answers at its address.
    """
    if not site.ray_address:
        raise InfraError(f"site {site.name!r} has no Ray cluster to train on", hint="run `orchestrate up`")
    _knock(site.ray_address)
    worker_settings = _prepare_environment(site)
    ray: Any = importlib.import_module("ray")

    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        ray.init(
            address=site.ray_address,
            log_to_driver=True,
            ignore_reinit_error=False,
            runtime_env={"env_vars": worker_settings},
        )
    except (ConnectionError, ray.exceptions.RayError, RuntimeError) as error:
        raise InfraError(
            f"cannot join the Ray cluster at {site.ray_address}: {error}", hint="see `orchestrate site status`"
        ) from error
    try:
        # Ray puts its own handlers in place of the worker's, which would turn SIGTERM into a silent exit.
        for number, handler in handlers.items():
            signal.signal(number, handler)
        yield
    finally:
        ray.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def cluster_nodes() -> list[NodeCapacity]:
    """Return the live nodes of the connected cluster."""
    ray: Any = importlib.import_module("ray")

    nodes = cast("list[dict[str, Any]]", ray.nodes())
    return [NodeCapacity(str(n["NodeID"])[:8], n["Resources"]) for n in nodes if n["Alive"]]


def choose_placement(resources: Mapping[str, Any], nodes: Sequence[NodeCapacity], site: SiteInfo) -> Placement:
    """Decide on the device; pure. A CPU takes the place of a GPU only where the site allows it.

    Args:
        resources: The recipe's `train.resources`: `{gpu, cpu}` per worker.
        nodes: What the cluster has.
        site: Its `allow_cpu` decides.

    Raises:
        DeviceError: A GPU is asked, there is none, and the site does not allow the CPU.
    """
    gpus, cpus = float(resources.get("gpu", 0)), float(resources.get("cpu", 1))
    if gpus <= 0:
        return Placement("cpu", "cpu", {"CPU": cpus})
    if any(node.total.get("GPU", 0) > 0 for node in nodes):
        return Placement("cuda", "cuda", {"CPU": cpus, "GPU": gpus})
    if not site.allow_cpu:
        raise DeviceError(
            f"the recipe asks for {gpus:g} GPU per worker; site {site.name!r} has none (GPU: 0 on {len(nodes)} node(s))",
            hint=f"`allow_cpu: true` on site {site.name!r} in the environment file permits training on the CPU",
            details={"asked": {"GPU": gpus}, "found": {"GPU": 0}},
        )
    return Placement("cpu", "cuda", {"CPU": cpus})


def wait_for_room(placement: Placement, workers: int, nodes: Sequence[NodeCapacity], events: StepEvents) -> None:
    """Return when the workers can start; Ray itself would wait without a word.

    Raises:
        NoCapacity: The cluster can never hold them (at once), or others hold it for longer than a minute.
    """
    ray: Any = importlib.import_module("ray")

    require_capacity(nodes, placement.per_worker, workers, cluster="the train site")
    deadline, told = time.monotonic() + _ROOM_S, False
    while True:
        free = cast("dict[str, float]", ray.available_resources())
        short = {n: a * workers for n, a in placement.per_worker.items() if free.get(n, 0) + 1e-9 < a * workers}
        if not short:
            return
        text = ", ".join(f"{name}: {need:g} asked, {free.get(name, 0):g} free" for name, need in short.items())
        if time.monotonic() > deadline:
            raise NoCapacity(
                f"other work holds the train site ({text})", hint="wait for it or end it", details={"short": short}
            )
        if not told:
            events.message(f"waiting for room on the train site ({text})")
            told = True
        time.sleep(0.2)


def _prepare_environment(site: SiteInfo) -> dict[str, str]:
    """Set what Ray reads at import, and return what its workers need."""
    shared = {"RAY_ADDRESS": site.ray_address}  # several clusters on one machine: nothing may guess
    if site.ray_token_path:
        shared |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": site.ray_token_path}
    loopback = site.ray_address.rpartition(":")[0] in _LOOPBACK
    if loopback:
        # The site listens on loopback alone; without this a driver looks for it at the host's address and hangs.
        shared["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Nobody reclaims the only node; the watcher would be one more process at every start.
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    os.environ.update({**_DRIVER_SETTINGS, **shared})
    if not loopback:
        return shared
    return {**shared, "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def _knock(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"the Ray cluster at {address} does not answer: {error}", hint="run `orchestrate up`"
        ) from error
