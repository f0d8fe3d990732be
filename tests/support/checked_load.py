"""Load in which every request has a number and every answer is compared with it."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from urllib.parse import urlsplit


class CheckedLoad:
    """Asks an echo of INT32 from start to `stop()`, from a thread of its own.

    Args:
        clients: Closed loop: connections, each of which asks again when it has its answer. Open loop: most connections.
        rate: Open loop: requests a second, a Poisson process; latency counts from when a request was due.
        pause_s: Closed loop: what a client waits after an answer that is not 200.

    Attributes:
        answers: Count by status; 0 = a connection that broke.
        wrong: Answers that are not those of their requests.
        latencies: Seconds of each 200.
        last_good: `time.monotonic()` of the newest 200.
        without_retry: Refusals for load that do not say when to come again.
    """

    def __init__(self, url: str, endpoint: str, *, clients: int = 8, rate: float = 0.0, pause_s: float = 0.02) -> None:
        self.answers: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.latencies: list[float] = []
        self.errors: Counter[str] = Counter()
        self.last_good, self.sent, self.without_retry = 0.0, 0, 0
        where = urlsplit(url)
        self._host, self._port = where.hostname or "", where.port or 0
        self._path, self._clients, self._rate, self._pause_s = f"/v2/models/{endpoint}/infer", clients, rate, pause_s
        self._stopping = threading.Event()
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()

    @property
    def good(self) -> int:
        return self.answers[200]

    @property
    def p99_s(self) -> float:
        """The 99th percentile of the latencies."""
        found = sorted(self.latencies)
        return found[min(len(found) - 1, int(len(found) * 0.99))] if found else float("inf")

    def stop(self) -> None:
        """End, with what is under way answered."""
        self._stopping.set()
        self._thread.join(30)

    async def _run(self) -> None:
        if not self._rate:
            await asyncio.gather(*(self._closed() for _ in range(self._clients)))
            return
        chance, due, tasks = random.Random(7), time.monotonic(), set[asyncio.Task[bool]]()
        while not self._stopping.is_set():
            due += chance.expovariate(self._rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self._ask(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _closed(self) -> None:
        while not self._stopping.is_set():
            if not await self._ask(time.monotonic()):
                await asyncio.sleep(self._pause_s)

    async def _ask(self, due: float) -> bool:
        number = self.sent = self.sent + 1
        tensor = {"name": "int32", "datatype": "INT32", "shape": [1, 2], "data": [number, -number]}
        body = json.dumps({"id": str(number), "inputs": [tensor]}).encode()
        head = f"POST {self._path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        try:
            reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
            writer.write(head + body)
            status, headers, text = await _read(reader)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.answers[0] += 1
            self.errors[repr(error)] += 1
            return False
        self._idle.append((reader, writer))
        self.answers[status] += 1
        if status == 200:
            self.last_good = time.monotonic()
            self.latencies.append(self.last_good - due)
            answer = json.loads(text)
            if (answer["id"], answer["outputs"][0]["data"]) != (str(number), [number, -number]):
                self.wrong.append(f"{number}: {text[:300]!r}")
        else:
            self.errors[json.loads(text)["error"]] += 1
            self.without_retry += status in (429, 503) and b"retry-after" not in headers
        return status == 200


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head.split(b" ", 2)[1]), head, await reader.readexactly(size)
