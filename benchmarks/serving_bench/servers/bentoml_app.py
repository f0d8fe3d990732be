"""BentoML: one worker, its numpy arguments, access log and metrics off, its adaptive batching for models."""

from __future__ import annotations

import base64

import bentoml
import numpy as np
from served import BATCH, MODEL, inputs_of, session, split

_QUIET = {"traffic": {"timeout": 60, "max_concurrency": 4096}, "workers": 1, "metrics": {"enabled": False},
          "logging": {"access": {"enabled": False}}, "tracing": {"sample_rate": 0.0}}  # fmt: skip
_BATCHING = {"batchable": True, "max_batch_size": BATCH, "max_latency_ms": 60_000} if BATCH > 1 else {}

if MODEL:

    @bentoml.service(**_QUIET)
    class Served:
        """The session; an argument is the base64 of a model's raw inputs."""

        def __init__(self) -> None:
            self._session = session()
            self._inputs = inputs_of(self._session)

        @bentoml.api(route="/infer", **_BATCHING)
        def infer(self, blobs: list[str]) -> np.ndarray:
            """Run a batch."""
            rows = [split(base64.b64decode(blob), self._inputs) for blob in blobs]
            return self._session.run(None, {n: np.concatenate([row[n] for row in rows]) for n in rows[0]})[0]

else:

    @bentoml.service(**_QUIET)
    class Served:
        """y = x."""

        @bentoml.api(route="/infer")
        async def infer(self, x: np.ndarray) -> np.ndarray:
            """Give it back."""
            return x.astype(np.float32)
