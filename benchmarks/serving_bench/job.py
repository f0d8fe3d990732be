"""What the load generator is to do, as it travels to its process."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass

from serving_bench.wire import Request


@dataclass(frozen=True)
class Job:
    """What to do.

    Attributes:
        protocol: http | grpc.
        path: gRPC: the method.
        rate: Requests a second of the open loop; 0 = closed loop.
        fixed: All good answers have the same length.
        check_every: Of how many good answers the content is checked.
        mark: The server's, for its CPU; empty without.
    """

    port: int
    requests: tuple[Request, ...]
    protocol: str = "http"
    path: str = ""
    connections: int = 32
    seconds: float = 3.0
    warmup_s: float = 1.0
    rate: float = 0.0
    seed: int = 1
    fixed: bool = True
    check_every: int = 16
    mark: str = ""

    def to_json(self) -> str:
        """Return the text that this program reads."""
        rows = [[base64.b64encode(r.wire).decode(), base64.b64encode(r.needle).decode()] for r in self.requests]
        return json.dumps({**asdict(self), "requests": rows})

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read it again."""
        body = json.loads(text)
        rows = tuple(Request(base64.b64decode(wire), base64.b64decode(needle)) for wire, needle in body["requests"])
        return cls(**{**body, "requests": rows})
