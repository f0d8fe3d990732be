"""Caps on what is read of an ONNX file, and on what the process may use that reads it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Limits:
    """The protobuf format itself ends at 2 GiB; bigger weights lie in external files.

    Attributes:
        external_size_bytes: What all tensors together may declare, external files included.
        depth: Of graphs inside graphs; the outermost counts.
        elements: Of one tensor, as far as its dimensions are known.
        name_length: Characters of one name.
        domains: Operator domains that may appear; the empty one is `ai.onnx`.
        memory_size_bytes: Address space of the checking process, beside what grows with the file.
        cpu_s, wall_s: Time of the checking process; an honest graph needs 3 s per 100,000 nodes.
        reply_size_bytes: What the checking process may write: the graph with the shapes that it found.
    """

    file_size_bytes: int = 2**31 - 1
    external_size_bytes: int = 256 * 2**30
    nodes: int = 500_000
    tensors: int = 500_000
    values: int = 2_000_000
    depth: int = 16
    type_depth: int = 8
    rank: int = 16
    elements: int = 2**32
    name_length: int = 16_384
    oldest_opset: int = 7
    domains: frozenset[str] = frozenset({""})
    memory_size_bytes: int = 2**30
    cpu_s: int = 60
    wall_s: float = 120.0
    reply_size_bytes: int = 2**28

    def to_text(self) -> str:
        """Return the limits as JSON, for the command line of the checking process."""
        return json.dumps({**asdict(self), "domains": sorted(self.domains)})

    @classmethod
    def from_text(cls, text: str) -> Limits:
        """Read what `to_text` wrote."""
        values: dict[str, Any] = json.loads(text)
        values["domains"] = frozenset(values["domains"])
        return cls(**values)
