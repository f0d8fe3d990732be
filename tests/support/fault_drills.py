"""Faults of the data plane, each injected under checked load; each drill says whether its fault really fired."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil

from orchestrator.serving.link.frames import Frame, Kind, encode
from orchestrator.serving.link.wire import read_rows
from orchestrator.serving.protocol.tensors import Tensor
from support.checked_load import CheckedLoad
from support.link_replica import LinkReplica, echo, echo_process, reply, row, specs
from support.serving_site import ServingSite

TIMEOUT_S, QUEUE = 1.5, 8
"""What the drills' router is set to: see `settings`."""
SETTINGS = {"request_timeout_s": TIMEOUT_S, "queue_limit": QUEUE, "replica_grace_s": 10.0}
INT32 = specs("INT32")


@dataclass(frozen=True, slots=True)
class Drill:
    """What happened.

    Attributes:
        fired: How often the fault was seen to have its effect.
        answers: Count by status; 0 = a connection that broke.
        recovery_s: From the end of the fault, or the death, to the next good answer.
    """

    name: str
    fired: int
    answers: dict[int, int]
    wrong: list[str]
    errors: dict[str, int]
    recovery_s: float = 0.0
    figures: dict[str, float] | None = None


def _told(name: str, fired: int, load: CheckedLoad, recovery_s: float = 0.0, **figures: float) -> Drill:
    return Drill(name, fired, dict(load.answers), load.wrong, dict(load.errors), recovery_s, figures)


@contextlib.contextmanager
def endpoint(site: ServingSite, name: str, *replicas: LinkReplica) -> Iterator[None]:
    """Wait for the replicas of an endpoint; stop them afterwards."""
    try:
        site.admin.wait_ready(name, 1, 10)
        yield
    finally:
        for replica in replicas:
            replica.stop()


def table(site: ServingSite, *names: str) -> None:
    site.put({name: {"pool": "edge", "generations": [row(name)]} for name in names})


def _until(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> float:
    begun = time.monotonic()
    ServingSite.wait(condition, timeout_s, what)
    return time.monotonic() - begun


def wedged(site: ServingSite, seconds: float = 0.3) -> Drill:
    """SIGSTOP of one of two replica processes, SIGCONT with its late answers, then kill -9."""
    link = site.short / "link.sock"
    processes = [echo_process(link, "wedged", "INT32") for _ in range(2)]
    try:
        _until(lambda: len(site.replica_pids("wedged")) == 2, "two replicas")
        load = CheckedLoad(site.url, "wedged")
        try:
            _until(lambda: load.good > 50, "answers")
            processes[0].send_signal(signal.SIGSTOP)
            _until(lambda: load.answers[504] > 0, "answers in time's stead", TIMEOUT_S + 5)
            before = load.good
            _until(lambda: load.good > before + 50, "the other replica answers")
            processes[0].send_signal(signal.SIGCONT)
            time.sleep(seconds)
            bad = sum(load.answers.values()) - load.good
            processes[0].kill()
            killed = time.monotonic()
            before = load.good
            _until(lambda: load.good > before + 50, "the other replica answers")
            recovery_s = max(0.0, min(load.last_good, time.monotonic()) - killed)
            late = sum(load.answers.values()) - load.good - bad
        finally:
            load.stop()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return _told("wedged", load.answers[504], load, recovery_s, lost_by_the_kill=late)


def _strange(frame: Frame, tensors: Sequence[Tensor], rows: Sequence[int]) -> list[list[bytes]]:
    (tensor,) = tensors
    flat = Tensor("int32_out", "INT32", (tensor.shape[0] * 2,), tensor.data)
    return [
        [b"\0" * 64],
        [reply(frame, [flat], rows)],
        [reply(Frame(frame.kind, frame.id + 1, frame.head, frame.body), [], rows)],
        [*echo(frame, tensors, rows), *echo(frame, tensors, rows)],
        [reply(frame, [], rows)],
        [encode(Kind.REPORT, {})],
        [next(iter(echo(frame, tensors, rows)))[:-3], b""],
    ]


def garbage(site: ServingSite, seconds: float = 0.6) -> Drill:
    """One of two replicas answers every tenth batch with garbage, of another kind each time."""
    count = itertools.count(1)
    fired: list[int] = []

    def answer(frame: Frame, tensors: Sequence[Tensor], rows: Sequence[int]) -> Sequence[bytes]:
        number = next(count)
        if number % 10:
            return echo(frame, tensors, rows)
        fired.append(number)
        kinds = _strange(frame, tensors, rows)
        return kinds[number // 10 % len(kinds)]

    link = site.short / "link.sock"
    replicas = LinkReplica(link, "garbage", INT32, answer=answer), LinkReplica(link, "garbage", INT32)
    with endpoint(site, "garbage", *replicas):
        load = CheckedLoad(site.url, "garbage")
        try:
            _until(lambda: len(fired) >= 7, "garbage of every kind", 20)
            time.sleep(seconds)
        finally:
            load.stop()
    return _told("garbage", len(fired), load, byes=len(replicas[0].refusals))


def full_queue(site: ServingSite, seconds: float = 0.3) -> Drill:
    """The only replica takes a batch and holds it; then it goes on."""
    gate = threading.Event()

    def answer(frame: Frame, tensors: Sequence[Tensor], rows: Sequence[int]) -> Sequence[bytes]:
        gate.wait(1.0)
        return echo(frame, tensors, rows)

    replica = LinkReplica(site.short / "link.sock", "full", INT32, answer=answer, credit=1, max_batch=4)
    with endpoint(site, "full", replica):
        load = CheckedLoad(site.url, "full", clients=32)
        try:
            _until(lambda: load.answers[429] > 20, "refusals")
            before = load.good
            gate.set()
            recovery_s = _until(lambda: load.good > before, "answers")
            time.sleep(seconds)
        finally:
            load.stop()
    return _told("full queue", load.answers[429], load, recovery_s, without_retry=load.without_retry)


def vanishing(site: ServingSite, rounds: int = 20) -> Drill:
    """Clients reset their connections in the middle of a body, while they wait, and in the middle of an answer."""
    assert site.router is not None

    def answer(frame: Frame, tensors: Sequence[Tensor], rows: Sequence[int]) -> Sequence[bytes]:
        time.sleep(0.002)
        return echo(frame, tensors, rows)

    where = urlsplit(site.url)
    router = psutil.Process(site.router.pid)
    wide = b"".join(struct.pack("<i", i) for i in range(200_000))
    head = (
        b'{"inputs":[{"name":"int32","datatype":"INT32","shape":[1,200000],"parameters":{"binary_data_size":800000}}],'
        b'"parameters":{"binary_data_output":true}}'
    )
    request = (
        b"POST /v2/models/vanishing/infer HTTP/1.1\r\nhost: x\r\ninference-header-content-length: %d\r\n"
        b"content-length: %d\r\n\r\n" % (len(head), len(head) + len(wide))
    ) + head + wide  # fmt: skip
    cut = 0
    replica = LinkReplica(site.short / "link.sock", "vanishing", INT32, answer=answer)
    with endpoint(site, "vanishing", replica):
        load = CheckedLoad(site.url, "vanishing")
        try:
            _until(lambda: load.good > 20, "answers")
            files, since = router.num_fds(), site.admin.events()["last"]
            for size, read in ((len(request) // 2, 0), (len(request), 0), (len(request), 1000)) * rounds:
                with socket.create_connection((where.hostname, where.port), timeout=10) as wire:
                    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    wire.sendall(request[:size])
                    cut += bool(read and wire.recv(read))
            before = load.good
            recovery_s = _until(lambda: load.good > before, "answers")
            _until(lambda: router.num_fds() <= files, "the connections are gone")
        finally:
            load.stop()
        gone = [event for event in site.admin.events(after=since, limit=10_000)["events"] if event["status"] == 499]
        rows = [r for r in site.admin.status()["generations"] if r["endpoint"] == "vanishing"]
        left = sum(r["queued"] + r["in_flight"] for r in rows)
    return _told("vanishing clients", cut, load, recovery_s, left=left, answers_to_nobody=len(gone))


def slow_loris(site: ServingSite, seconds: float = 0.6, sockets: int = 300) -> Drill:
    """Connections that send one byte now and then, of a head or of a body."""
    where = urlsplit(site.url)
    replica = LinkReplica(site.short / "link.sock", "loris", INT32)
    with endpoint(site, "loris", replica), contextlib.ExitStack() as stack:
        load = CheckedLoad(site.url, "loris")
        try:
            _until(lambda: load.good > 20, "answers")
            wires = [
                stack.enter_context(socket.create_connection((where.hostname, where.port))) for _ in range(sockets)
            ]
            for i, wire in enumerate(wires):
                wire.sendall(
                    b"POST /v2/models/loris/infer HTTP/1.1\r\nhost: x\r\n"
                    + (b"content-length: 900\r\n\r\n" if i % 2 else b"")
                )
            before, ends = load.good, time.monotonic() + seconds
            while time.monotonic() < ends:
                for wire in wires:
                    wire.sendall(b"a")
                time.sleep(0.05)
            during = load.good - before
        finally:
            load.stop()
    return _told("slow loris", len(wires), load, during_s=during / seconds)


def killed_router(site: ServingSite, seconds: float = 0.3) -> Drill:
    """kill -9 of the router under load; started again as its supervisor does; clients come back by themselves."""
    assert site.router is not None
    replicas = [LinkReplica(site.short / "link.sock", "router", INT32) for _ in range(2)]
    with endpoint(site, "router", *replicas):
        load = CheckedLoad(site.url, "router")
        try:
            _until(lambda: load.good > 50, "answers")
            os.kill(site.router.pid, signal.SIGKILL)
            killed = time.monotonic()
            site.router.wait()
            site.start_router()
            _until(lambda: load.last_good > killed + 0.05, "answers again")
            recovery_s = load.last_good - killed
            time.sleep(seconds)
        finally:
            load.stop()
    return _told("killed router", load.answers[0], load, recovery_s)


def overload(site: ServingSite, seconds: float = 1.2, batch_s: float = 0.08, rows: int = QUEUE) -> Drill:
    """Ten times what the pool can do, in an open loop, after half of it: latencies of what is admitted."""

    def answer(frame: Frame, tensors: Sequence[Tensor], _: Sequence[int]) -> Sequence[bytes]:
        time.sleep(batch_s)
        return echo(frame, tensors, read_rows(frame))

    capacity = rows / batch_s
    replica = LinkReplica(site.short / "link.sock", "overload", INT32, answer=answer, credit=1, max_batch=rows)
    with endpoint(site, "overload", replica):
        p99 = list[float]()
        for share in (0.5, 10.0):
            load = CheckedLoad(site.url, "overload", rate=capacity * share, clients=1000)
            time.sleep(seconds)
            load.stop()
            p99.append(load.p99_s)
        ended = time.monotonic()
        after = CheckedLoad(site.url, "overload", clients=1)
        recovery_s = _until(lambda: after.good, "an answer after it")
        after.stop()
        assert time.monotonic() > ended
    ratio = p99[1] / p99[0]
    return _told("overload", load.answers[429], load, recovery_s, half_p99_ms=p99[0] * 1e3, p99_ms=p99[1] * 1e3,
                 ratio=ratio, capacity=capacity, good_per_s=load.good / seconds, without_retry=load.without_retry)  # fmt: skip


DRILLS = (wedged, garbage, full_queue, vanishing, slow_loris, killed_router, overload)
ENDPOINTS = ("wedged", "garbage", "full", "vanishing", "loris", "router", "overload")
