"""Clients in a process of their own, which write down who answered what, and when: `python rollout_traffic.py JOB`.

JOB is a JSON file {url, endpoint, clients, pause_s, out}. Until SIGTERM, `out` gets a line per answer: [client, sent, received,
status, generation, bundle or error, the factor that the value shows]; status 0 = a connection that broke.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}).encode()


async def _client(name: str, job: dict[str, Any], out: TextIO, stopping: asyncio.Event) -> None:
    where = urlsplit(job["url"])
    head = f"POST /v2/models/{job['endpoint']}/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(BODY)}\r\n\r\n"
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while not stopping.is_set():
        sent = time.time()
        try:
            connection = connection or await asyncio.open_connection(where.hostname, where.port)
            connection[1].write(head.encode() + BODY)
            row = await _answer(connection[0])
        except (OSError, asyncio.IncompleteReadError) as error:
            row, connection = [0, 0, repr(error), 0.0], None
        out.write(json.dumps([name, sent, time.time(), *row]) + "\n")
        await asyncio.sleep(job["pause_s"] if row[0] == 200 else 0.05)


async def _answer(reader: asyncio.StreamReader) -> list[Any]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:])}
    body = await reader.readexactly(int(fields.get("content-length", 0)))
    status = int(lines[0].split(" ", 2)[1])
    if status != 200:
        return [status, 0, body[:300].decode("utf-8", "replace"), 0.0]
    told = json.loads(body)
    return [status, int(told["model_version"]), fields["x-orchestrate-bundle"], told["outputs"][0]["data"][0]]


async def _main(job: dict[str, Any]) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    with Path(job["out"]).open("w", buffering=1) as out:
        await asyncio.gather(*(_client(f"c{number}", job, out, stopping) for number in range(job["clients"])))


if __name__ == "__main__":
    asyncio.run(_main(json.loads(Path(sys.argv[1]).read_bytes())))
