"""Identifiers. Short, sortable by time, safe in file names, URLs and process listings."""

from __future__ import annotations

import re
import secrets
import time
from typing import Final, NewType

from orchestrator.core.errors import UsageError

ExecutionId = NewType("ExecutionId", str)
"""`x` + 8 base-36 digits of milliseconds + 4 random base-36 digits; sorts by time."""

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")


def new_execution_id() -> ExecutionId:
    """Return a fresh execution id."""
    millis, text = time.time_ns() // 1_000_000, ""
    while millis:
        millis, digit = divmod(millis, 36)
        text = _DIGITS[digit] + text
    return ExecutionId("x" + text + "".join(secrets.choice(_DIGITS) for _ in range(4)))


def new_token(size_bytes: int = 32) -> str:
    """Return a fresh secret token, hex."""
    return secrets.token_hex(size_bytes)


def is_name(text: str) -> bool:
    """Tell whether `text` may name a recipe, step, endpoint, pool or site (1 to 64 characters)."""
    return _NAME.fullmatch(text) is not None


def check_name(text: str, what: str) -> str:
    """Return `text`, or raise `UsageError` when it is no name."""
    if not is_name(text):
        raise UsageError(
            f"{what} {text[:80]!r} is not a valid name",
            hint="use 1 to 64 of a-z 0-9 . _ - and start and end with a letter or digit",
        )
    return text
