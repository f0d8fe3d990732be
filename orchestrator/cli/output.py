"""Printing: one JSON object for machines, short tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.core.redact import redact


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on one line, secrets masked."""
    print(json.dumps(redact(value), default=str), flush=True)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print left-aligned columns; nothing fancy, so that it greps well."""
    lines = [[str(cell) for cell in row] for row in rows]
    table = [list(headings), *lines]
    widths = [max(len(row[i]) for row in table) for i in range(len(headings))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def say(text: str) -> None:
    """Print a line for the person, on stderr, so that stdout stays clean for pipes."""
    print(text, file=sys.stderr, flush=True)
