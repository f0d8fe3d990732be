"""All hostile ONNX files by name, and what tests need to write them."""

from __future__ import annotations

from support import hostile_files, hostile_graphs
from support.hostile_base import ATTACKS, CANARY, canary_is_being_read, good, graph_of, outside, rich, write

__all__ = [
    "ATTACKS",
    "CANARY",
    "canary_is_being_read",
    "good",
    "graph_of",
    "hostile_files",
    "hostile_graphs",
    "outside",
    "rich",
    "write",
]
