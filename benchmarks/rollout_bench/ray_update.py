"""The same switch by an in-place update of Ray Serve: one replica that says its version, under load, updated again and again.

Runs in the peer's environment: `python ray_update.py SETTINGS`, a JSON file {port, temp, rounds, clients, rate}; prints JSON
{requests, failed, switch_s: [from the call to the first moment after which no request gets the old version]}.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


def application(version: str) -> Any:
    """One replica; an update starts the new one before the old one ends."""

    @serve.deployment(
        name="model",
        num_replicas=1,
        max_ongoing_requests=1024,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    class Model:
        async def __call__(self, request: Request) -> Response:
            await request.body()
            return Response(version)

    return Model.bind()


class Load:
    """Clients that ask in turn; keeps (sent, version or empty)."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.answers: list[tuple[float, str]] = []
        self._settings = settings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        self._thread.join()

    async def _run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._settings["clients"])))

    async def _client(self) -> None:
        pause_s = self._settings["clients"] / self._settings["rate"]
        request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nabcd"
        streams: Any = None
        while not self._stopping.is_set():
            sent = time.time()
            try:
                streams = streams or await asyncio.open_connection("127.0.0.1", self._settings["port"])
                streams[1].write(request)
                head = (await streams[0].readuntil(b"\r\n\r\n")).lower()
                size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                text = (await streams[0].readexactly(size)).decode()
                self.answers.append((sent, text if head.split(b" ", 2)[1] == b"200" else ""))
            except (OSError, asyncio.IncompleteReadError):
                self.answers.append((sent, ""))
                streams = None
            await asyncio.sleep(max(0.0, sent + pause_s - time.time()))


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_bytes())
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=settings["temp"], log_to_driver=False,
             object_store_memory=256 << 20)  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": settings["port"]})
    serve.run(application("0"), name="app", route_prefix="/")
    load = Load(settings)
    began: list[float] = []
    time.sleep(2)
    for version in range(1, settings["rounds"] + 1):
        began.append(time.time())
        serve.run(application(str(version)), name="app", route_prefix="/")
        time.sleep(2)
    load.stop()
    switches = []
    for version, at in enumerate(began, 1):
        old = [sent for sent, text in load.answers if sent > at and text and int(text) < version]
        switches.append(max(old, default=at) - at)
    failed = sum(not text for _, text in load.answers)
    print(json.dumps({"requests": len(load.answers), "failed": failed, "switch_s": switches}))


if __name__ == "__main__":
    main()
