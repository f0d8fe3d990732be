"""The load generator, a process of its own: one thread on epoll and raw sockets, requests rendered before the clock runs.

Closed loop: every connection sends its next request when it has its answer. Open loop: requests have times at which they
are meant to be sent (a Poisson process), whatever the server does, and latency counts from that time: what waits for a
connection, or for this process, waits on the server's account, so that nothing is omitted in step with the server.

`python -m serving_bench.load < job.json`; the result is one JSON object on stdout.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from serving_bench.histogram import CHUNK, Histogram
from serving_bench.job import Job
from serving_bench.processes import cpu_us, members, memory_mib
from serving_bench.schedule import Schedule
from serving_bench.wire import BROKEN, Grpc, Http1

_READ = 1 << 18
_DRAIN_S = 10.0
_now = time.perf_counter_ns


class Connection:
    """A socket, its protocol, and the request that it waits for."""

    def __init__(self, load: Load, number: int) -> None:
        self.load, self.number, self.sent = load, number, number
        self.began_ns = 0
        self.busy = False
        self.open()

    def open(self) -> None:
        """Connect anew."""
        job = self.load.job
        self.unsent = memoryview(b"")
        self.wire: Http1 | Grpc = Grpc(job.path) if job.protocol == "grpc" else Http1()
        self.sock = socket.create_connection(("127.0.0.1", job.port), timeout=20)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(self.wire.greeting())
        self.sock.setblocking(False)
        self.load.connections[self.sock.fileno()] = self
        self.load.epoll.register(self.sock.fileno(), select.EPOLLIN)

    def close(self) -> None:
        """Leave the socket."""
        self.load.epoll.unregister(self.sock.fileno())
        del self.load.connections[self.sock.fileno()]
        self.sock.close()

    def send(self, began_ns: int) -> None:
        """Send the next request; its latency counts from `began_ns`."""
        requests = self.load.job.requests
        self.sent += 1
        self.began_ns, self.busy = began_ns, True
        self.write(self.wire.render(requests[self.sent % len(requests)]))

    def write(self, data: bytes | memoryview) -> None:
        """Send what the socket takes, and the rest when it takes more."""
        if self.unsent:
            self.unsent = memoryview(bytes(self.unsent) + bytes(data))
            return
        try:
            size = self.sock.send(data)
        except BlockingIOError:
            size = 0
        except OSError:
            return  # the read side tells
        if size < len(data):
            self.unsent = memoryview(data)[size:]
            self.load.epoll.modify(self.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def flush(self) -> None:
        """The socket takes more."""
        data, self.unsent = self.unsent, memoryview(b"")
        self.load.epoll.modify(self.sock.fileno(), select.EPOLLIN)
        self.write(data)

    def read(self) -> int:
        """Return the status of an answer that is whole now, 0 when none is, `BROKEN` when none will come."""
        try:
            data = self.sock.recv(_READ)
        except BlockingIOError:
            return 0
        except OSError:
            return BROKEN
        if not data:
            return BROKEN
        status = self.wire.feed(data)
        if self.wire.reply:
            reply, self.wire.reply = self.wire.reply, b""
            self.write(reply)
        return status


@dataclass
class Load:
    """One run."""

    job: Job
    connections: dict[int, Connection] = field(default_factory=dict)
    epoll: Any = field(default_factory=select.epoll)
    taken: Histogram = field(default_factory=Histogram)
    late: Histogram = field(default_factory=Histogram)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    example: str = ""
    length: int = 0

    def finish(self, connection: Connection, status: int, now_ns: int) -> None:
        """Count an answer."""
        connection.busy = False
        self.statuses[status] += 1
        if status == 200:
            self.taken.add(now_ns - connection.began_ns)
            if self.job.fixed and connection.wire.length != self.length:
                self._length(connection)
            if self.statuses[200] % self.job.check_every == 0:
                self._check(connection)
        elif status == BROKEN:
            connection.close()
            connection.open()
        elif not self.example:
            self.example = connection.wire.answer[:600].decode(errors="replace")

    def _length(self, connection: Connection) -> None:
        if self.length:
            self.wrong += 1
            self.example = self.example or f"a body of {connection.wire.length} bytes, the first had {self.length}"
        self.length = self.length or connection.wire.length

    def _check(self, connection: Connection) -> None:
        requests = self.job.requests
        needle = requests[connection.sent % len(requests)].needle
        answer = connection.wire.answer
        if needle and needle not in answer and needle not in answer.replace(b" ", b""):
            self.wrong += 1
            self.example = self.example or answer[:600].decode(errors="replace")

    def clear(self) -> None:
        """Forget the warm-up."""
        self.taken.clear()
        self.late.clear()
        self.statuses.clear()

    def answers(self, wait_s: float) -> list[tuple[Connection, int]]:
        """Return the connections whose request is over, with the status."""
        found = []
        for fd, event in self.epoll.poll(wait_s):
            connection = self.connections[fd]
            if event & select.EPOLLOUT:
                connection.flush()
            status = connection.read() if event & ~select.EPOLLOUT else 0
            if status and not connection.busy:
                self.unasked(connection, status)
            elif status:
                found.append((connection, status))
        return found

    def unasked(self, connection: Connection, status: int) -> None:
        """Something comes where nothing was asked: a server may end an idle connection, but may not answer twice."""
        if status != BROKEN:
            self.wrong += 1
            self.example = self.example or "an answer without a request"
        connection.close()
        connection.open()

    def run_closed(self, until_ns: int) -> None:
        """Keep every connection busy until then."""
        now_ns = _now()
        while now_ns < until_ns:
            for connection, status in self.answers(0.05):
                now_ns = _now()
                self.finish(connection, status, now_ns)
                connection.send(now_ns)
            now_ns = _now()
            self.taken.fold(least=CHUNK)

    def run_open(self, times: Schedule, until_ns: int, idle: deque[Connection]) -> None:
        """Send at the intended times until then, over the idle connections, last used first."""
        waiting: deque[int] = deque()
        now_ns = _now()
        while now_ns < until_ns:
            while times.next_ns <= now_ns:
                waiting.append(times.take())
            while waiting and idle:
                connection = idle.pop()
                intended_ns = waiting.popleft()
                connection.send(intended_ns)
                self.late.add(_now() - intended_ns)
            pause_ns = min(times.next_ns, until_ns) - _now()
            if pause_ns > 0:
                select.select([self.epoll], [], [], pause_ns / 1e9)
            for connection, status in self.answers(0):
                self.finish(connection, status, _now())
                idle.append(connection)
            now_ns = _now()
        times.left = len(waiting)


def run(job: Job) -> dict[str, Any]:
    """Do the job and return what it found."""
    load = Load(job)
    links = [Connection(load, number) for number in range(job.connections)]
    pids = members(job.mark) if job.mark else set()
    idle: deque[Connection] = deque(links)
    start_ns = _now()
    middle_ns = start_ns + int(job.warmup_s * 1e9)
    until_ns = middle_ns + int(job.seconds * 1e9)
    times = Schedule(job.rate or 1.0, job.seed, start_ns)
    if not job.rate:
        for link in links:
            link.send(start_ns)
        idle.clear()

    def go(until: int) -> None:
        load.run_open(times, until, idle) if job.rate else load.run_closed(until)

    go(middle_ns)
    load.clear()
    before, own_s, began_ns = cpu_us(pids), time.process_time(), _now()
    go(until_ns)
    own_s, wall_s = time.process_time() - own_s, (_now() - began_ns) / 1e9
    pids = members(job.mark) if job.mark else set()
    used_us = sum(value - before.get(pid, 0.0) for pid, value in cpu_us(pids).items())
    good, done = load.statuses[200], sum(load.statuses.values()) or 1
    unanswered = drain(load, idle)
    return {
        "requests_per_s": round(good / wall_s, 1),
        "cpu_us": round(used_us / done, 2),
        **load.taken.summary(),
        "answers": {str(status): count for status, count in sorted(load.statuses.items())},
        "wrong": load.wrong,
        "example": load.example,
        "seconds": round(wall_s, 3),
        "rss_mib": round(memory_mib(pids), 1),
        "processes": len(pids),
        "generator_cpu": round(own_s / wall_s, 3),
        "unanswered": unanswered,
        **({"late_p99_ms": round(load.late.quantile_ms(0.99), 4), "unsent": times.left} if job.rate else {}),
    }  # fmt: skip


def drain(load: Load, idle: deque[Connection]) -> int:
    """Wait for the answers that are due; returns how many never came."""
    deadline = time.monotonic() + _DRAIN_S
    while len(idle) < len(load.connections) and time.monotonic() < deadline:
        for connection, status in load.answers(0.05):
            load.finish(connection, status, _now())
            idle.append(connection)
    return len(load.connections) - len(idle)


if __name__ == "__main__":
    print(json.dumps(run(Job.from_json(sys.stdin.read()))))
