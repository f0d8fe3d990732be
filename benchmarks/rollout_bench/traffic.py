"""Checked traffic: clients that ask in turn, at a fixed rate together, and write down who answered what, and when.

`python -m rollout_bench.traffic JOB`: JOB is a JSON file {url, path, bodies, expected, clients, rate, out}; `expected` has the
outputs of each body by bundle. Runs until stdin closes; then `out` has one line per answer: [client, sent, received, status,
generation, bundle or error, whether the outputs are those of that bundle].
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvloop

Record = list[Any]


class Client:
    """One connection, one request at a time."""

    def __init__(self, name: str, job: dict[str, Any], records: list[Record]) -> None:
        where = urlsplit(job["url"])
        self._name, self._host, self._port = name, where.hostname, where.port
        self._records = records
        self._requests = [_request(job["path"], row) for row in job["bodies"]]
        self._expected = {bundle: np.array(rows, np.float32) for bundle, rows in job["expected"].items()}
        self._every_s = job["clients"] / job["rate"]

    async def run(self, stopping: asyncio.Event, offset_s: float) -> None:
        """Ask until told to stop; a connection that breaks is one failed request."""
        due, number = time.monotonic() + offset_s, 0
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not stopping.is_set():
            due = max(due + self._every_s, time.monotonic() - 0.2)  # what was missed is not made up for by a burst
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            number += 1
            body = number % len(self._requests)
            sent = time.time()
            try:
                streams = streams or await asyncio.open_connection(self._host, self._port)
                streams[1].write(self._requests[body])
                *row, outputs = await _answer(streams[0])
                right = row[0] == 200 and self._is_right(row[2], body, outputs)
            except (OSError, asyncio.IncompleteReadError) as error:
                row, right, streams = [0, 0, repr(error)], False, None
            self._records.append([self._name, sent, time.time(), *row, right])
        if streams is not None:
            streams[1].close()

    def _is_right(self, bundle: str, body: int, outputs: bytes) -> bool:
        wanted = self._expected.get(bundle)
        return wanted is not None and np.allclose(
            np.frombuffer(outputs, np.float32), wanted[body], rtol=2e-3, atol=2e-3
        )


def _request(path: str, row: dict[str, Any]) -> bytes:
    body = base64.b64decode(row["body"])
    head = "".join(f"{name}: {value}\r\n" for name, value in row["headers"].items())
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def _answer(reader: asyncio.StreamReader) -> list[Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    fields = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head.split("\r\n")[1:])}
    body = await reader.readexactly(int(fields.get("content-length", 0)))
    status = int(head.split(" ", 2)[1])
    if status != 200:
        return [status, 0, body[:300].decode("utf-8", "replace"), b""]
    size = int(fields.get("inference-header-content-length", len(body)))
    version = int(json.loads(body[:size])["model_version"])
    return [status, version, fields.get("x-orchestrate-bundle", ""), body[size:]]


async def _main(job: dict[str, Any]) -> None:
    records: list[Record] = []
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, lambda: sys.stdin.read(1) or stopping.set())
    every_s = 1 / job["rate"]
    clients = [Client(f"c{number}", job, records) for number in range(job["clients"])]
    await asyncio.gather(*(client.run(stopping, every_s * place) for place, client in enumerate(clients)))
    Path(job["out"]).write_text("\n".join(json.dumps(record) for record in records))


if __name__ == "__main__":
    uvloop.run(_main(json.loads(Path(sys.argv[1]).read_bytes())))
