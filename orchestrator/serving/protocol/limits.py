"""What one client may ask of an HTTP listener."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds.

    Attributes:
        body: One body, as sent and as decoded.
        buffered: All bodies that are held at once, over all connections; then 503.
        pipeline: Unanswered requests on one connection before it is read no further.
    """

    body: int = 64 << 20
    head: int = 16 << 10
    buffered: int = 1 << 30
    connections: int = 10_000
    pipeline: int = 64
    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 75.0
