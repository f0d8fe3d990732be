"""What the engine tells whoever watches: the terminal, `--json`, a test."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Types: `execution` (state), `step` (state, with action, reason, attempt), `progress` (done, total, text), `metric`
    (name, value, at), `message` (text), `retry` (delay_s, budget, error).
    """

    type: str
    step: str = ""
    payload: dict[str, Any] = field(default_factory=dict[str, Any])
    t: float = field(default_factory=time.time)

    def to_json(self) -> dict[str, Any]:
        """Return one NDJSON object; whoever prints it masks secrets."""
        return {"event": self.type, "step": self.step, "t": self.t, **self.payload}


Observer = Callable[[Event], None]
