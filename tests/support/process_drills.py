"""Deaths of whole processes beside others that live, under checked load: one of several routers, and the agent."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
from onnx import TensorProto, helper

from orchestrator.core.digests import Digest
from support.checked_load import CheckedLoad
from support.fault_drills import Drill
from support.serving_site import ServingSite, generation, write_bundle

ROUTERS = 2


def site_of(folder: Path) -> ServingSite:
    """Return a site of two routers and an agent with two slots, whose endpoints `router` and `agent` give back what they get."""
    site = ServingSite(folder / "site", routers=ROUTERS, request_timeout_s=20.0, replica_grace_s=20.0)
    try:
        site.start_router()
        site.start_agent(slots=2)
        for name in ("router", "agent"):
            site.serve(name, generation(1, _echo_bundle(folder / name)), timeout_s=60)
    except BaseException:
        site.stop()
        raise
    return site


def _echo_bundle(folder: Path) -> tuple[Digest, Path]:
    values = [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", 2]) for name in ("int32", "int32_out")]
    graph = helper.make_graph([helper.make_node("Identity", ["int32"], ["int32_out"])], "echo", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.array([[1, -1], [2, -2]], np.int32)
    return write_bundle(folder, model, {"input/int32": x, "output/int32_out": x})


def _told(name: str, fired: int, load: CheckedLoad, recovery_s: float, **figures: float) -> Drill:
    return Drill(name, fired, dict(load.answers), load.wrong, dict(load.errors), recovery_s, figures)


def killed_one_of_the_routers(site: ServingSite, seconds: float = 0.3) -> Drill:
    """kill -9 of one router of two: the other goes on, and whoever was connected to the dead one comes back to it."""
    load = CheckedLoad(site.url, "router", clients=16)
    try:
        ServingSite.wait(lambda: load.good > 100, 20, "answers")
        dead = site.followers.pop(1)
        dead.kill()
        killed = time.monotonic()
        dead.wait()
        before = load.good
        ServingSite.wait(lambda: load.good > before + 100, 20, "the other router answers")
        recovery_s = time.monotonic() - killed
        site.start_follower(1)
        ServingSite.wait(lambda: _whole(site), 30, "both routers have all replicas")
        time.sleep(seconds)
    finally:
        load.stop()
    return _told("killed router of two", int(dead.returncode == -signal.SIGKILL), load, recovery_s)


def killed_agent(site: ServingSite, seconds: float = 0.3) -> Drill:
    """kill -9 of the only agent: its replicas end with it; what was asked waits for those of the agent that comes next."""
    agent = site.agents.pop()
    replicas = [psutil.Process(pid) for pid in site.replica_pids("agent")]
    load = CheckedLoad(site.url, "agent")
    try:
        ServingSite.wait(lambda: load.good > 50, 20, "answers")
        os.kill(agent.pid, signal.SIGKILL)
        killed = time.monotonic()
        agent.wait()
        ended = psutil.wait_procs(replicas, timeout=20)[0]
        site.start_agent(slots=2)
        ServingSite.wait(lambda: load.last_good > killed + 0.5, 60, "answers again")
        recovery_s = load.last_good - killed
        time.sleep(seconds)
    finally:
        load.stop()
    return _told("killed agent", len(ended), load, recovery_s, replicas=len(replicas))


def _whole(site: ServingSite) -> bool:
    status, wanted = site.admin.status(), list(range(ROUTERS))
    return len(status["routers"]) == ROUTERS and all(row["routers"] == wanted for row in status["replicas"])


DRILLS = (killed_one_of_the_routers, killed_agent)
