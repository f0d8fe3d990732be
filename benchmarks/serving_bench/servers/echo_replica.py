"""A replica of ours, the real program, whose runtime gives back what it gets: `python echo_replica.py --config replica.json`.

`ECHO_MS` makes a batch take that long, asleep: a device that is busy while the CPU is not.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, cast

from orchestrator.serving.protocol.tensors import Tensor, TensorSpec
from orchestrator.serving.replica import process as replica
from orchestrator.serving.runtimes import api
from orchestrator.serving.runtimes.in_collect import InCollect

_PAUSE_S = float(os.environ.get("ECHO_MS", "0")) / 1000


class EchoSession(InCollect):
    """y = x."""

    device = api.REHEARSAL
    inputs = (TensorSpec("x", "FP32", ("batch", "n")),)
    outputs = (TensorSpec("y", "FP32", ("batch", "n")),)
    max_batch = 32
    depth = 2
    buckets = ()

    def collect(self, ticket: int) -> list[Tensor]:
        """Give it back."""
        (x,) = self.taken(ticket)
        if _PAUSE_S:
            time.sleep(_PAUSE_S)
        return [Tensor("y", x.datatype, x.shape, x.data)]

    def close(self) -> None:
        """Nothing to free."""


def load(_job: api.Job) -> EchoSession:
    """See `api.Runtime`."""
    return EchoSession()


if __name__ == "__main__":
    # No agent starts this runtime: the product has no echo.
    cast("dict[str, Any]", api._MODULES)["echo"] = "__main__"
    sys.exit(replica.main())
