"""Printing: one JSON object for machines, short tables for people."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from orchestrator.core.redact import redact


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on one line, secrets masked; NaN and infinities, which JSON lacks, as texts."""
    say(json.dumps(_finite(redact(value)), default=str, allow_nan=False))


def say(text: str) -> None:
    """Print a line on stdout; once its reader has gone (`| head`, a closed terminal) print nothing.

    What runs goes on: nobody wants half a training because a pager was closed.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"warning: cannot write to stdout: {error}", file=sys.stderr)
        mute()


def mute() -> None:
    """Send all that is still printed nowhere, the buffer that is flushed at exit included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in cast("dict[str, object]", value).items()}
    if isinstance(value, list):
        return [_finite(item) for item in cast("list[object]", value)]
    return value


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print left-aligned columns; nothing fancy, so that it greps well."""
    lines = [[str(cell) for cell in row] for row in rows]
    table = [list(headings), *lines]
    widths = [max(len(row[i]) for row in table) for i in range(len(headings))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
