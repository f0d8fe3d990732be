"""Deaths, stops and floods of a site's parts while a canary walks under traffic."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from onnx import TensorProto, helper

from orchestrator.core.digests import Digest
from orchestrator.ledger import GenerationState, Ledger
from support.rollout_drills import ANALYSIS
from support.rollout_site import ENDPOINT, Child, Drill, RolloutSite
from support.rollout_traffic import BODY
from support.serving_site import ServingSite, write_bundle
from support.stopping import stop_outside_a_write

SLOW: dict[str, Any] = {
    "kind": "canary",
    "steps": [{"set_weight": 30}, {"pause": {"duration_s": 2.0}}, {"analysis": ANALYSIS}, {"set_weight": 60}],
}
HELD: dict[str, Any] = {"kind": "canary", "steps": [{"set_weight": 30}, {"pause": {"duration_s": 60}}]}


def _walking(site: RolloutSite, how: dict[str, Any] = SLOW) -> tuple[Child, int, int]:
    """Start a canary; returns its controller, stable and canary once the canary has its first weight."""
    factor, stable = site.other, site.live.number
    child = site.child(lambda: site.deploy(factor, how))
    ServingSite.wait(lambda: child.ended() or site.weight() == 30, 60, "the canary's weight")
    if child.ended() and child.wait() != 5:
        raise AssertionError(f"the rollout ended with {child.wait()} before the fault: {child.said()}")
    return child, stable, max(g.number for g in site.generations)


def _promoted(site: RolloutSite, child: Child, canary: int) -> list[str]:
    code = child.wait()
    told = [] if code == 0 else [f"the rollout ended with {code}: {child.said()[-300:]}"]
    return told if site.live.number == canary else [*told, f"generation {site.live.number} is live, not {canary}"]


def _taken_back(site: RolloutSite, child: Child, stable: int, canary: int) -> list[str]:
    code = child.wait()
    told = [] if code == 1 else [f"the rollout ended with {code}, not 1: {child.said()[-300:]}"]
    states = {g.number: g.state for g in site.generations}
    if (site.live.number, states[canary]) != (stable, GenerationState.FAILED):
        told.append(f"generation {site.live.number} is live, {canary} is {states[canary]}")
    return told


def _kill(pids: list[int]) -> int:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return len(pids)


def _whole(site: RolloutSite) -> bool:
    return len(site.pids(site.live.number)) == site.slots


def router_of_two(site: RolloutSite) -> Drill:
    """kill -9 of one router of two: who was connected to it comes back to the other."""
    with site.traffic():
        child, _, canary = _walking(site)
        dead = site.serving.followers.pop(1)
        dead.kill()
        fired = int(dead.wait() == -signal.SIGKILL)
        site.serving.start_follower(1)
        problems = _promoted(site, child, canary)
    return site.judge("kill -9 router of two", fired, problems, borne=(0,))


def only_router(site: RolloutSite) -> Drill:
    """kill -9 of the router that holds the table; its connections break, another one resumes the table."""
    with site.traffic():
        child, _, canary = _walking(site)
        dead = site.serving.router
        assert dead is not None
        dead.kill()
        fired = int(dead.wait() == -signal.SIGKILL)
        site.serving.start_router()
        problems = _promoted(site, child, canary)
        time.sleep(0.5)
    return site.judge("kill -9 the leading router", fired, problems, borne=(0,))


def agent(site: RolloutSite) -> Drill:
    """kill -9 of the only agent: all replicas end with it; requests wait for those of the next."""
    with site.traffic():
        child, _, canary = _walking(site)
        dead = site.serving.agents.pop()
        dead.kill()
        fired = int(dead.wait() == -signal.SIGKILL)
        site.serving.start_agent(slots=site.slots)
        problems = _promoted(site, child, canary)
        ServingSite.wait(lambda: _whole(site), 60, "replicas")
    return site.judge("kill -9 the agent", fired, problems)


def stable_replica(site: RolloutSite) -> Drill:
    """F30: kill -9 of one replica of the stable generation."""
    with site.traffic():
        child, stable, canary = _walking(site)
        fired = _kill(site.pids(stable)[:1])
        problems = _promoted(site, child, canary)
    return site.judge("F30 kill -9 a replica of stable", fired, problems)


def canary_replica(site: RolloutSite) -> Drill:
    """F30: kill -9 of one replica of the canary."""
    with site.traffic():
        child, _, canary = _walking(site)
        fired = _kill(site.pids(canary)[:1])
        problems = _promoted(site, child, canary)
    return site.judge("F30 kill -9 a replica of the canary", fired, problems)


def dead_canary(site: RolloutSite) -> Drill:
    """F31: the canary's replicas are killed as often as they come: it is taken back, stable is untouched."""
    with site.traffic():
        child, stable, canary = _walking(site, HELD)
        before, fired, deadline = sorted(site.pids(stable)), 0, time.monotonic() + 60
        while not child.ended() and time.monotonic() < deadline:
            fired += _kill(site.pids(canary))
            time.sleep(0.05)
        problems = _taken_back(site, child, stable, canary)
        if sorted(site.pids(stable)) != before:
            problems.append("the replicas of stable are others than before")
    return site.judge("F31 kill -9 all replicas of the canary", fired, problems)


def wedged_canary(site: RolloutSite) -> Drill:
    """F37: the canary's replicas stop answering without ending: who was dealt to it is answered by stable, or told 504."""
    with site.traffic(clients=30):
        child, stable, canary = _walking(site, HELD)
        pids = site.pids(canary)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        problems = _taken_back(site, child, stable, canary)
    return site.judge("F37 wedged canary", len(pids), problems, borne=(504,))


def stopped_controller(site: RolloutSite) -> Drill:
    """A controller sleeps through a rollback: when it wakes it is refused with 4 and changes nothing."""
    with site.traffic():
        child, stable, _ = _walking(site, HELD)
        stop_outside_a_write(child.pid, Path(site.url.removeprefix("sqlite:///")))
        problems = [] if site.rollback() == stable else ["the rollback did not lead to stable"]
        before = (site.serving.admin.table().to_json(), _done(site))
        os.kill(child.pid, signal.SIGCONT)
        code = child.wait()
        if code != 4:
            problems.append(f"the stopped controller ended with {code}: {child.said()}")
        if (site.serving.admin.table().to_json(), _done(site)) != before:
            problems.append("the stopped controller has changed something")
    return site.judge("SIGSTOP a controller over a rollback", 1, problems)


def _gone(site: RolloutSite) -> bool:
    """Tell whether the agents have let go of what was taken back."""
    rows = [replica for row in site.serving.admin.status()["agents"] for replica in row["replicas"]]
    return not any(row["bundle"] == site.bundles[site.other][0] for row in rows)


def _done(site: RolloutSite) -> list[str]:
    with Ledger.open(site.url) as ledger:
        return [row.hash for row in ledger.audit.rows(limit=100_000) if row.action != "refused"]


def no_memory(site: RolloutSite) -> Drill:
    """F36: the canary asks for 16 TiB when it is loaded: it is refused, stable is untouched."""
    bundle = _greedy_bundle(site.folder / f"greedy-{time.time_ns()}")
    with site.traffic():
        stable = site.live.number
        child = site.child(lambda: site.deploy(0.0, HELD, bundle))
        code, said = child.wait(), child.said()
        newest = max(site.generations, key=lambda g: g.number)
        fired = int(newest.bundle == bundle[0] and newest.state == GenerationState.FAILED)
        problems = [] if code in (1, 3) else [f"the rollout ended with {code}: {said}"]
        if site.live.number != stable:
            problems.append(f"generation {site.live.number} is live")
    return site.judge("F36 no memory for the canary", fired, problems)


def _greedy_bundle(folder: Path) -> tuple[Digest, Path]:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["some"], keepdims=0),
        helper.make_node("Expand", ["some", "wide"], ["much"]),
        helper.make_node("ReduceMean", ["much"], ["mean"], keepdims=0),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    wide = helper.make_tensor("wide", TensorProto.INT64, [2], [2**21, 2**21])
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [wide])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.ones((3, 4), np.float32)
    return write_bundle(folder, model, {"input/x": x, "output/y": x})


def vanishing_clients(site: RolloutSite) -> Drill:
    """F39: clients ask and are gone before they are answered."""
    where, fired = urlsplit(site.serving.url), 0
    head = f"POST /v2/models/{ENDPOINT}/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(BODY)}\r\n\r\n".encode()
    with site.traffic():
        child, _, canary = _walking(site)
        while not child.ended():
            with socket.create_connection((where.hostname or "", where.port or 0), timeout=10) as connection:
                connection.sendall(head + BODY)
            fired += 1
            time.sleep(0.002)
        problems = _promoted(site, child, canary)
        if (holding := _in_flight(site)) > 50:
            problems.append(f"{holding} requests are in flight")
    return site.judge("F39 vanishing clients", fired, problems)


def _in_flight(site: RolloutSite) -> int:
    return sum(int(row.get("inflight", 0)) for row in site.serving.admin.status()["replicas"])


def overloaded(site: RolloutSite) -> Drill:
    """F38: far more than the queues take: it is refused at the door, and the canary is not blamed for it."""
    with site.traffic(clients=200, pause_s=0.0):
        child, _, canary = _walking(site)
        problems = _promoted(site, child, canary)
    refused = sum(row[3] in (429, 503) for row in site.rows)
    return site.judge("F38 overload", refused, problems, borne=(429, 503))


def switch_in_flight(site: RolloutSite) -> Drill:
    """F40: all traffic moves while 1000 clients ask without a pause."""
    with site.traffic(clients=1000, pause_s=0.0) as out:
        ServingSite.wait(lambda: out.read_text().count("\n") > 3000, 60, "a thousand clients")
        child = site.child(lambda: site.deploy(site.other))
        code = child.wait()
        problems = [] if code == 0 else [f"the deploy ended with {code}: {child.said()}"]
        seen = out.read_text().count("\n")
        ServingSite.wait(lambda: out.read_text().count("\n") > seen + 2000, 60, "answers of the new generation")
    clients = len({row[0] for row in site.rows})
    return site.judge("F40 a switch under 1000 clients", int(clients == 1000), problems)


def flapping(site: RolloutSite) -> Drill:
    """F34: a build that dies again and again is taken back three times; then a person must look (exit 5)."""
    codes: list[int] = []
    fired = 0
    with site.traffic():
        if site.live.number != 1:
            site.rollback()  # nothing stays warm, so that what is taken back is unloaded
        stable = site.live.number
        for _ in range(4):
            ServingSite.wait(lambda: _gone(site), 30, "the former replicas' end")
            child, _, canary = _walking_or_held(site)
            while not child.ended():
                fired += _kill(site.pids(canary))
                time.sleep(0.05)
            codes.append(child.wait())
        problems = [] if codes == [1, 1, 1, 5] else [f"the commands ended with {codes}: {child.said()}"]
        if site.live.number != stable:
            problems.append(f"generation {site.live.number} is live")
        if codes[-1] == 5:
            site.rollback()
    return site.judge("F34 flapping canary", fired, problems)


def _walking_or_held(site: RolloutSite) -> tuple[Child, int, int]:
    return _walking(site, HELD | {"kill": {"failures_in_row": 20, "restarts": 2}})


DRILLS: tuple[Callable[[RolloutSite], Drill], ...] = (
    router_of_two, only_router, agent, stable_replica, canary_replica, dead_canary, wedged_canary, stopped_controller,
    no_memory, overloaded, vanishing_clients, switch_in_flight, flapping,
)  # fmt: skip
SETTINGS_OF: dict[Callable[[RolloutSite], Drill], dict[str, Any]] = {overloaded: {"queue_limit": 8}}
"""What a drill's router is set to, where it is not as usual."""
