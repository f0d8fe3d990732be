"""Ray Serve: one replica that takes Starlette's request as it is, access log off, `serve.batch` for models."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import orjson
import ray
from ray import serve
from served import BATCH, DELAY_S, SETTINGS, inputs_of, session, split
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(
    num_replicas=1, max_ongoing_requests=4096, logging_config={"enable_access_log": False, "log_level": "WARNING"}
)
class Served:
    """Echo or session; a body is OIP JSON, or the raw bytes of all inputs in a row."""

    def __init__(self) -> None:
        self._session: Any = session()
        self._inputs = inputs_of(self._session) if self._session else []

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=DELAY_S)
    async def compute(self, rows: list[dict[str, Any]]) -> list[Any]:
        """Run a batch."""
        feed = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        return [row[None] for row in self._session.run(None, feed)[0]]

    async def __call__(self, request: Request) -> Response:
        """Answer."""
        body = await request.body()
        if request.headers.get("content-type") != "application/json":
            y = await self.compute(split(body, self._inputs)) if self._session else np.frombuffer(body, np.float32)
            return Response(y.tobytes(), media_type="application/octet-stream")
        x = orjson.loads(body)["inputs"][0]
        y = np.asarray(x["data"], dtype=np.float32).reshape(x["shape"])
        rows = {"outputs": [{"name": "y", "datatype": "FP32", "shape": y.shape, "data": y.ravel()}]}
        return Response(orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


if __name__ == "__main__":
    # A cluster of its own, whatever else runs on this machine.
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, _temp_dir=SETTINGS["temp"], log_to_driver=False,
        object_store_memory=256 << 20,
    )  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": SETTINGS["port"]})
    serve.run(Served.bind(), name="served", route_prefix="/")
    while True:
        time.sleep(3600)
