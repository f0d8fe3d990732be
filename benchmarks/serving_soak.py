"""Half an hour of mixed load: 64 echo replicas, 2,000 connections; every answer is checked, memory must stay flat.

`python benchmarks/serving_soak.py [--minutes 30 | --quick] [--rate 600] [--json]`. JSON, binary, pipelined and versioned
requests and gRPC, while the routing table changes every second. `--rate` slows the load down to so many requests a second,
so that the machine is free for other things: in half an hour of 600 a second, 2 % of a router of 90 MiB are less than 3
bytes a request, and nothing that leaks is smaller. Ends with 1 where an answer was wrong, lost or doubled, a well-formed
request was not answered with 200, or the memory of the router, an agent or the replicas grew by more than 2 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import psutil  # noqa: E402

REPLICAS, CONNECTIONS, WORKERS, GRPC_CALLERS = 64, 2000, 4, 32
THINK_S: Final = 1.2
"""Mean pause of a connection between two turns: what is looked for needs hours of traffic, not two busy cores."""
REQUESTS_OF_A_TURN: Final = 1.6
"""Mean: one turn in five is of four pipelined requests."""
GROWTH: Final = 0.02
SAMPLE_S: Final = 1.0
HEAD: Final = "POST {} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n{}\r\n"


def numbers(number: int) -> list[float]:
    """Return two numbers that fp32 holds exactly and that no other request of this run has."""
    return [float(number % (1 << 20)), float(number >> 20)]


def render(number: int, kind: str) -> bytes:
    """Return one request of a kind: json, binary or version."""
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    path, more, blob = "/v2/models/echo/infer", "", b""
    if kind == "version":
        path = f"/v2/models/echo/versions/{1 + number % 2}/infer"
    if kind == "binary":
        blob = struct.pack("<2f", *numbers(number))
        tensor["parameters"] = {"binary_data_size": len(blob)}
    else:
        tensor["data"] = numbers(number)
    body: dict[str, Any] = {"id": str(number), "inputs": [tensor]}
    if kind == "binary":
        body["parameters"] = {"binary_data_output": True}
    text = json.dumps(body).encode()
    if kind == "binary":
        more = f"inference-header-content-length: {len(text)}\r\n"
    return HEAD.format(path, len(text) + len(blob), more).encode() + text + blob


class Worker:
    """A part of the load; one process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.sent = settings["first"]
        self.think_s: float = settings["think_s"]
        self.ends = time.monotonic() + settings["seconds"]

    def run(self) -> None:
        """Ask until the time is over, then print what was found."""
        asyncio.run(self._main())
        count = self.sent - self.settings["first"]
        print(json.dumps({"sent": count, "answers": dict(self.answers), "wrong": self.wrong[:10]}))

    async def _main(self) -> None:
        tasks = [self._connection(i) for i in range(self.settings["connections"])]
        if self.settings["grpc"]:
            tasks.append(self._grpc())
        await asyncio.gather(*tasks)

    async def _connection(self, seed: int) -> None:
        chance = random.Random(seed)
        await asyncio.sleep(chance.random() * self.think_s)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.settings["port"])
        while time.monotonic() < self.ends:
            kind = chance.choice(("json", "json", "binary", "version", "pipelined"))
            kinds = chance.choices(("json", "binary", "version"), k=4) if kind == "pipelined" else [kind]
            first = self.sent
            self.sent += len(kinds)
            writer.write(b"".join(render(first + i, kind) for i, kind in enumerate(kinds)))
            for i, kind in enumerate(kinds):
                try:
                    self._check(first + i, kind, *await read(reader))
                except (OSError, asyncio.IncompleteReadError) as error:
                    self.answers[repr(error)[:80]] += 1
                    return
            await asyncio.sleep(chance.expovariate(1 / self.think_s))
        writer.close()

    def _check(self, number: int, kind: str, status: int, size: int | None, text: bytes) -> None:
        self.answers[str(status)] += 1
        if status != 200:
            self.wrong.append(f"{number} {kind}: {status} {text[:200]!r}")
            return
        answer = json.loads(text[:size])
        row = answer["outputs"][0]
        data = row["data"] if size is None else list(struct.unpack("<2f", text[size:]))
        versions = {str(1 + number % 2)} if kind == "version" else {"1", "2"}
        if (answer["id"], data) != (str(number), numbers(number)) or answer["model_version"] not in versions:
            self.wrong.append(f"{number} {kind}: {text[:200]!r}")

    async def _grpc(self) -> None:
        import numpy as np
        import tritonclient.grpc.aio as triton
        from tritonclient.utils import InferenceServerException

        async def caller() -> None:
            while time.monotonic() < self.ends:
                number = self.sent
                self.sent += 1
                x = np.array([numbers(number)], np.float32)
                tensor = triton.InferInput("x", [1, 2], "FP32").set_data_from_numpy(x)
                try:
                    found = await client.infer("echo", [tensor], request_id=str(number))
                except InferenceServerException as error:
                    self.answers[f"{time.strftime('%H:%M:%S')} gRPC {error}"[:120]] += 1
                    continue
                self.answers["200"] += 1
                if found.get_response().id != str(number) or not np.array_equal(found.as_numpy("y"), x):
                    self.wrong.append(f"{number} grpc: {found.get_response()}")
                await asyncio.sleep(random.expovariate(1 / self.think_s))

        async with triton.InferenceServerClient(self.settings["grpc"]) as client:
            await asyncio.gather(*(caller() for _ in range(GRPC_CALLERS)))


async def read(reader: asyncio.StreamReader) -> tuple[int, int | None, bytes]:
    """Return status, size of the JSON where binary tensors follow, and body of the next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    marks = (
        head.partition(name)[2].partition(b"\r\n")[0] for name in (b"\r\ncontent-length: ", b"header-content-length: ")
    )
    size, json_size = marks
    return int(head.split(b" ", 2)[1]), int(json_size) if json_size else None, await reader.readexactly(int(size))


def endpoints(pool: Any, turn: int) -> dict[str, object]:
    """Return the table of a turn: two generations of one bundle, whose weights change, beside an endpoint that comes and goes."""
    table = pool.site.admin.table().to_json()["endpoints"]
    one = next(iter(table["echo"]["generations"]))
    rows = [{**one, "generation": n, "weight": w} for n, w in ((1, turn % 101), (2, 100 - turn % 101))]
    found: dict[str, object] = {name: row for name, row in table.items() if name not in ("echo", "guest")}
    found["echo"] = {**table["echo"], "generations": rows}
    if turn % 2:
        found["guest"] = {"pool": "nowhere", "generations": [{**one, "generation": 1, "weight": 100}]}
    return found


def resident(groups: dict[str, list[psutil.Process]]) -> dict[str, float]:
    """Return MiB that each group of processes owns alone: shared pages move between processes by themselves."""
    return {name: sum(p.memory_full_info().uss for p in group) / 2**20 for name, group in groups.items()}


def fill_ring(pool: Any) -> None:
    """Make the router remember as many events as it ever will: what its memory does after that, requests do."""
    from serving_bench.job import Job
    from serving_bench.payloads import OIP_PATH, every, small
    from serving_bench.server import load

    job = Job(pool.http_port, every(small(2), "json", OIP_PATH.format("echo")), seconds=1.0, warmup_s=0.0)
    while not pool.site.admin.events(limit=1)["lost"]:
        assert set(load(job)["answers"]) == {"200"}


def soak(
    seconds: float, replicas: int, connections: int, think_s: float = THINK_S, *, filled: bool = False
) -> dict[str, Any]:
    """Run the load, and return answers, what was wrong, table changes and memory over time.

    `filled`: fill the router's ring of events first, so that a short run is long enough.
    """
    from serving_bench.ours import echo_pool
    from support.serving_site import generation, scale_bundle

    from orchestrator.serving.admin import RouterAdmin

    with echo_pool(replicas=replicas) as pool:
        site = pool.site
        site.admin = RouterAdmin(site.short / "admin.sock", timeout_s=30)
        site.start_agent()
        site.version = site.admin.table().version
        site.serve("scale", generation(1, scale_bundle(pool.server.folder / "made" / "scale", 2.0)))
        site.put(endpoints(pool, 0))
        if filled:
            fill_ring(pool)
        workers = [
            subprocess.Popen([sys.executable, __file__, "--worker", json.dumps({
                "port": pool.http_port, "grpc": site.grpc if i == 0 else "", "seconds": seconds, "think_s": think_s,
                "connections": connections // WORKERS, "first": i << 32})], stdout=subprocess.PIPE)
            for i in range(WORKERS)
        ]  # fmt: skip
        assert site.router is not None
        found = [psutil.Process(pid) for pid in site.replica_pids("echo")]
        groups = {
            "router": [psutil.Process(site.router.pid)],
            "agent": [psutil.Process(agent.pid) for agent in site.agents],
            "replicas": found[:16],
        }
        samples: list[dict[str, float]] = []
        turn = warm = 0
        while any(worker.poll() is None for worker in workers):
            turn += 1
            site.put(endpoints(pool, turn))
            samples.append(resident(groups))
            if not warm and site.admin.events(limit=1)["lost"]:
                warm = len(samples)  # the ring of events is full: from here on nothing has a reason to grow
            print(f"\r{turn} s, router {samples[-1]['router']:.1f} MiB ", end="", file=sys.stderr, flush=True)
            time.sleep(SAMPLE_S)
        print(file=sys.stderr)
        told = [json.loads(worker.communicate()[0] or b"{}") for worker in workers]
    answers: Counter[str] = Counter()
    for part in told:
        answers.update(part.get("answers", {}))
    return {"seconds": seconds, "replicas": len(found), "connections": connections, "tables": turn,
            "sent": sum(part.get("sent", 0) for part in told), "answers": dict(answers),
            "wrong": [w for part in told for w in part.get("wrong", ["a worker died"])], "memory": growth(samples, warm)}  # fmt: skip


def growth(samples: list[dict[str, float]], warm: int) -> dict[str, dict[str, float]]:
    """Return per group the MiB after the warm-up and at the end, as medians over a tenth of the time between.

    The warm-up is the first third, and as long as the router's ring of events was not full; 0 = it never was.
    """
    rest = samples[max(len(samples) // 3, warm or len(samples)) : -2]
    if not rest:
        return {}
    part = max(3, len(rest) // 10)
    found: dict[str, dict[str, float]] = {}
    for name in samples[0]:
        begun, ended = (statistics.median(row[name] for row in rows) for rows in (rest[:part], rest[-part:]))
        found[name] = {"begun_mib": begun, "ended_mib": ended, "growth": ended / begun - 1}
    return found


def problems(result: dict[str, Any], most: float = GROWTH) -> list[str]:
    """Return what is wrong with a run; `most` is how much memory may grow."""
    found = [f"wrong: {text}" for text in result["wrong"]]
    if not result["memory"]:
        found.append("too short: the router's ring of events did not get full, so its memory says nothing")
    if sum(result["answers"].values()) != result["sent"] or set(result["answers"]) != {"200"}:
        found.append(f"{result['sent']} sent, answered {result['answers']}")
    return found + [
        f"{name} grew by {row['growth']:.1%}" for name, row in result["memory"].items() if row["growth"] > most
    ]


def main() -> int:
    """Soak, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--quick", action="store_true", help="2 minutes")
    parser.add_argument("--replicas", type=int, default=REPLICAS)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--rate", type=float, help="requests a second; without it as many as its pauses allow")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        Worker(json.loads(args.worker)).run()
        return 0
    think_s = REQUESTS_OF_A_TURN * args.connections / args.rate if args.rate else THINK_S
    result = soak((2.0 if args.quick else args.minutes) * 60, args.replicas, args.connections, think_s)
    wrong = problems(result)
    if args.json:
        print(json.dumps({**result, "problems": wrong}))
        return 1 if wrong else 0
    rate = result["sent"] / result["seconds"]
    print(
        f"{result['sent']} requests ({rate:.0f}/s) over {result['connections']} connections to {result['replicas']} replicas"
    )
    print(f"answers {result['answers']}, {result['tables']} tables, {len(result['wrong'])} wrong")
    for name, row in result["memory"].items():
        print(
            f"{name:9} {row['begun_mib']:8.1f} MiB after warm-up, {row['ended_mib']:8.1f} at the end: {row['growth']:+.1%}"
        )
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
