"""Durations and sizes as people write them: `90s`, `5m`, `1h30m`, `64MiB`."""

from __future__ import annotations

import re
from typing import Final

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s?(B|KiB|MiB|GiB|TiB)")


def parse_duration_s(text: str | float) -> float:
    """Return seconds; a bare number is seconds already.

    Raises:
        ValueError: Not a duration, or negative.
    """
    if isinstance(text, int | float):
        if text < 0:
            raise ValueError(f"a duration cannot be negative: {text}")
        return float(text)
    if not re.fullmatch(rf"(?:{_PART.pattern})+", text):
        raise ValueError(f"not a duration: {text!r} (write 90s, 5m or 1h30m)")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def parse_size_bytes(text: str | int) -> int:
    """Return bytes; a bare number is bytes already.

    Raises:
        ValueError: Not a size.
    """
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"not a size: {text!r} (write 512MiB or 2GiB)")
    return int(float(match[1]) * _BYTES[match[2]])


def format_duration(seconds: float) -> str:
    """Return a short text for people: `0.31s`, `42s`, `3m 05s`, `2h 10m`."""
    if seconds < 10:
        return f"{seconds:.2f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def format_bytes(size_bytes: int) -> str:
    """Return a short text for people: `12 B`, `4.0 MiB`."""
    size, unit = float(size_bytes), "B"
    for unit in _BYTES:
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
